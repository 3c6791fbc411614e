from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

import tvlars_probe
from tests.data.idx import write_fashion_mnist
from tvlars_probe.commands.options import Command, option
from tvlars_probe.commands.train import command as train_command
from tvlars_probe.commands.training_options import build_config
from tvlars_probe.runners.configuration.training import TrainConfig

QUICK = ("--limit", 64, "--bs", 32, "--epochs", 2, "--devices", "cpu", "--threads", 1)


def test_a_run_from_the_command_line(cli: Any) -> None:
    done = cli("train", *QUICK, "--run-dir", "r")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "Recording into r"
    assert re.match(r"epoch 1/2  train loss \d.*test loss .* acc .* %", lines[1])
    assert lines[-2].startswith("completed: train_loss ")
    assert lines[-1] == "Run: r"
    again = cli("train", *QUICK, "--run-dir", "r")
    assert again.out.splitlines()[0] == "Already trained: r"


def test_the_command_line_is_kept_in_the_manifest(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tvlars-probe", "train", "x"])
    cli("train", *QUICK, "--run-dir", "r")
    assert tvlars_probe.open_run("r").manifest.command == ["tvlars-probe", "train", "x"]


def test_divergence_is_a_finding_not_an_error(cli: Any) -> None:
    done = cli("train", *QUICK, "--opt", "sgd", "--lr", "1e12", "--run-dir", "r")
    assert done.code == 0
    assert "The loss was not finite: loss nan in step" in done.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--ds", "mnist"], r"'mnist' is not one of 'digits', 'fashion-mnist'"),
        (["--model", "vgg"], r"'vgg' is not one of 'cnn', 'resnet18'"),
        (["--opt", "lion"], r"'lion' is not one of 'lars', 'tvlars', 'lamb'"),
        (["--opt", "muon"], "another --opt"),
        (["--sd", "step"], r"'step' is not one of 'none', 'cosine', 'lars-warm'"),
        (["--bs", "1", "--nproc", "2"], "--batch-size 1 is smaller than the number of ranks, 2"),
        (["--mode", "bt", "--projector", "99999999999-1"], r"--projector 99999999999-1 can't be built on this machine"),
        (["--bs", "2000"], "--batch-size 2000 is larger than the training data: digits has 1437 samples"),
        (["--bs", "many"], "'many' is not a valid integer"),
        (["--epochs", "0"], "--epochs 0 is too few"),
        (["--lr", "-1"], "--lr -1 is outside its range"),
        (["--lr", "nan"], "--lr nan is outside its range"),
        (["--peak-lr", "-1"], "--peak-lr -1 is outside its range"),
        (["--peak-lr", "16", "--lr", "8", "--sd", "lars-warm"], "--lr 8 and --peak-lr 16 are two words for one rate"),
        (["--sd", "lars-warm", "--warmup-epochs", "20"], "--warmup-epochs 20 leaves no epoch after the warm-up"),
        (["--warmup-epochs", "3"], "no effect with --schedule none"),
        (["--devices", "0"], "this machine has no CUDA device; to run on the CPU use --devices cpu"),
        (["--devices", "0", "0"], "this machine has no CUDA device"),
        (["--devices", "tpu"], "give 'cpu', 'auto', or numbers of CUDA devices"),
        (["--devices"], "requires an argument"),
        (["--nproc", "0"], "--nproc 0 is too few"),
        (["--precision", "fp8"], "'fp8' is not one of"),
        (["--val", "1"], "--val 1 is not a share"),
        (["--run-dir", "taken"], "taken already holds something that is not a run"),
        (["--run-dir", "file"], "file is a file"),
        (["--run-dir", "file/below"], "can't write to"),
        (["--ds", "fashion-mnist", "--data-dir", "."], "Fashion-MNIST is not there: looked for train-"),
        (["--ds", "fashion-mnist", "--data-dir", "damaged"], "train-images-idx3-ubyte.gz is damaged"),
        (["--resume", "nowhere"], "nowhere is not a run directory"),
        (["--nonsense"], "No such option"),
        (["--opt", "tvlars", "--delay", "nan"], "--delay nan is outside its range"),
        (["--alpha", "inf"], "--alpha inf is outside its range"),
        (["--seed", "20000000000000"], "allowed: 0 to 4294967295"),
        (["--threads", "100000"], "allowed: 1 to 1024"),
        (["--run-dir", "x" * 300], "File name too long"),
        (["--sharpness-every", "often"], "give a number of steps, 1 or more, or 'log'"),
        (["--sharpness-every", "0"], "give a number of steps"),
        (["--sharpness-samples", "0"], "--sharpness-samples 0 is too few"),
        (["--sharpness-measures", "batch"], "without --sharpness-every measures nothing"),
        (["--sharpness-operators", "fisher"], "'fisher' is not one of"),
        (["--probe-budget", "150%"], "such as 10%"),
        (["--probe-budget", "some"], "such as 10%"),
        (["--lr"], "requires an argument"),
        (["word"], "unexpected extra argument"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
def test_bad_input_is_one_line_and_leaves_nothing(cli: Any, args: list[str], message: str) -> None:
    Path("taken").mkdir()
    Path("taken/notes.txt").write_text("x")
    Path("file").write_text("x")
    damaged = write_fashion_mnist(Path("damaged")) / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    before = sorted(str(p) for p in Path().rglob("*"))
    done = cli("train", *args)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert sorted(str(p) for p in Path().rglob("*")) == before


def test_numbers_cannot_be_changed_on_resume(cli: Any) -> None:
    cli("train", *QUICK, "--run-dir", "r")
    done = cli("train", "--resume", "r", "--lr", "3")
    assert done.code == 2
    assert "--lr can't be changed in a run that is resumed" in done.err
    assert cli("train", "--resume", "r", "--threads", "1").out.startswith("Already trained: r")


def test_a_strangers_run_cannot_be_resumed_by_train(cli: Any) -> None:
    optimizer = tvlars_probe.LARS([torch.nn.Parameter(torch.ones(2))], 1.0)
    with tvlars_probe.record(None, optimizer, "mine"):
        pass
    done = cli("train", "--resume", "mine")
    assert done.code == 2
    assert "was not made by tvlars-probe train: its own loop continues it, by record(..., resume=)" in done.err


def parse(*args: str) -> TrainConfig:
    context = train_command.make_context("train", list(args))
    return build_config(context.params)


def test_spectral_norms_are_asked_for() -> None:
    assert parse("--spectral-every", "6", "--record-every", "3").recording.spectral_every == 6
    assert parse().recording.spectral_every is None


def test_the_defaults_are_those_of_the_configuration() -> None:
    assert parse() == TrainConfig()


def test_the_seeds_short_names() -> None:
    config = parse(
        "--bs", "512", "--epochs", "100", "--lr", "1.0", "--port", "7046", "--wd", "0.0005", "--ds", "digits",
        "--model", "resnet18", "--opt", "tvlars", "--sd", "None", "--lmbda", "1e-06", "--dv", "0", "1", "2", "3",
    )  # fmt: skip
    assert (config.batch_size, config.epochs, config.optimizer.lr, config.place.port) == (512, 100, 1.0, 7046)
    assert (config.optimizer.name, config.optimizer.lmbda, config.schedule.name) == ("tvlars", 1e-6, "none")
    assert config.place.devices == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    "args",
    [["--devices", "0", "1", "--lr", "2"], ["--lr", "2", "--devices", "0", "1"],
     ["--devices", "0", "--dv", "1", "--lr=2"], ["--devices=0", "--devices=1", "--lr", "2"]],
    ids=" ".join,
)  # fmt: skip
def test_devices_take_all_words_that_follow(args: list[str]) -> None:
    config = parse(*args)
    assert config.place.devices == ("0", "1")
    assert config.optimizer.lr == 2.0


def test_greedy_options_take_negative_numbers() -> None:
    @click.command(cls=Command)
    @option("--lr", section="x", greedy=True, type=float)
    @option("--flag", section="x", is_flag=True)
    def command(lr: tuple[float, ...], flag: bool) -> None:
        click.echo(json.dumps([lr, flag]))

    result = CliRunner().invoke(command, ["--lr", "1", "-2", "3e-1", "--flag"])
    assert json.loads(result.output) == [[1.0, -2.0, 0.3], True]


def test_every_option_has_help_and_a_default() -> None:
    context = click.Context(train_command, help_option_names=["-h", "--help"])  # click keeps the option it makes
    for param in train_command.get_params(context):
        assert isinstance(param, click.Option)
        assert param.help, param.name
        record = param.get_help_record(context)
        assert record is not None
        without_default = {
            "data_dir", "limit", "micro_batch", "resume", "help", "sharpness_every", "noise_every", "probe_budget",
        }  # fmt: skip
        if param.name not in without_default and not param.is_flag:
            assert "[default: " in record[1], param.name


def test_a_port_in_use_is_refused(cli: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        refused = cli("train", "--nproc", 2, "--devices", "cpu", "--port", taken.getsockname()[1], "--run-dir", "a")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "can't be used" in refused.err
    assert not (tmp_path / "a").exists()


def test_a_folder_that_holds_only_a_lock_is_vacant(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").touch()
    assert cli("train", "--limit", 64, "--bs", 32, "--epochs", 1, "--run-dir", "a").code == 0


def test_without_arguments_the_help_is_shown_as_it_is(cli: Any) -> None:
    shown = cli()
    assert shown.code == 2
    assert "\n  train " in shown.err
