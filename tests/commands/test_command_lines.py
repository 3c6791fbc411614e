"""The official experiments' 36 command lines, as their README has them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tests.data.cifar import write_cifar10
from tvlars_probe.commands.train import command as train_command
from tvlars_probe.commands.training_options import build_config

if TYPE_CHECKING:
    from tvlars_probe.runners.configuration.training import TrainConfig

LINES = (Path(__file__).parents[1] / "golden" / "command_lines.txt").read_text().splitlines()


def words(line: str) -> list[str]:
    program, script, *rest = shlex.split(line)
    assert (program, script) == ("python", "main.py")
    return rest


def on_cpu(line: str, *more: object) -> list[str]:
    """The line's words with ``--dv 0 1 2 3`` replaced, and more after them."""
    text = " ".join(words(line)).replace("--dv 0 1 2 3", "--dv cpu")
    return [*text.split(), *[str(word) for word in more]]


def parse(args: list[str]) -> TrainConfig:
    return build_config(train_command.make_context("train", args).params)


def said(line: str) -> dict[str, str]:
    """The line's options and values, read by a route of our own."""
    pairs = [part.split(maxsplit=1) for part in " ".join(words(line)).split("--")[1:]]
    return {name: value.strip() for name, value in pairs}


def test_there_are_36() -> None:
    assert len(LINES) == len({*LINES}) == 36
    assert sum("--mode bt" in line for line in LINES) == 18


@pytest.mark.parametrize("line", LINES, ids=[f"{said(x)['port']}" for x in LINES])
def test_each_line_is_parsed_to_what_it_says(line: str) -> None:
    config, value = parse(words(line)), said(line)
    assert config.place.devices == tuple(value["dv"].split())
    assert config.place.port == int(value["port"])
    assert (config.batch_size, config.epochs) == (int(value["bs"]), int(value["epochs"]))
    assert (config.data.name, config.model.name, config.mode) == (value["ds"], value["model"], value.get("mode", "clf"))
    assert config.optimizer.name == value["opt"]
    assert config.optimizer.lr == float(value["lr"])
    assert config.optimizer.weight_decay == float(value["wd"])
    assert config.optimizer.lmbda == float(value["lmbda"])
    assert config.schedule.name == value["sd"].lower()
    assert config.barlow.epochs == int(value.get("cl_epochs", 1000))
    assert config.barlow.widths == (4096, 4096, 4096)
    assert (config.barlow.lmbda, config.barlow.lr_classifier, config.barlow.lr_backbone) == (0.005, 0.3, 0.0)
    assert config.scheduled_epochs == (1000 if config.mode == "bt" else 100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
@pytest.mark.parametrize("line", [LINES[0], LINES[18]], ids=["clf", "bt"])
def test_without_those_devices_the_line_says_what_is_missing(cli: Any, line: str) -> None:
    done = cli("train", *words(line))
    assert done.code == 2
    assert done.err == (
        "Error: --devices 0 1 2 3: this machine has no CUDA device; to run on the CPU use --devices cpu (--nproc N)\n"
    )


def train(cli: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tvlars_probe.Run:
    """Train a line to the end on 128 images, a batch an epoch, until Barlow Twins' running statistics have settled."""
    write_cifar10(tmp_path / "data", monkeypatch, per_batch=110, test=60)
    more = ("--limit", 128, "--bs", 128, "--epochs", 1, "--threads", 1, "--train-eval-samples", 0, "--run-dir", "r")
    done = cli("train", *on_cpu(line, *more, *(("--cl_epochs", 6, "--projector", "512-512") if "bt" in line else ())))
    assert done.code == 0, done.err
    return tvlars_probe.open_run("r")


@pytest.mark.parametrize("line", [LINES[3], pytest.param(LINES[17], marks=pytest.mark.slow)], ids=["0.001", "0.01"])
def test_classification_lines_train_to_the_end(
    cli: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(cli, line, tmp_path, monkeypatch)
    assert run.status == "completed"
    assert run.steps()["phase"].tolist() == ["train"]
    assert run.epochs()["test_acc5"].notna().all()


@pytest.mark.slow
def test_a_barlow_twins_line_trains_to_the_end(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(cli, LINES[35], tmp_path, monkeypatch)
    assert run.status == "completed"
    assert run.steps()["phase"].tolist() == ["pretrain"] * 6 + ["linear"]
    assert run.epochs()["phase"].tolist() == ["pretrain"] * 6 + ["linear"]
    assert run.epochs()["test_acc5"].notna().tolist() == [False] * 6 + [True]
