"""``batch-size``: what it prints, writes, measures first, and refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.noisy import add_noise, measured, with_noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Cli


@pytest.fixture
def run(trained: Callable[..., Path], tmp_path: Path) -> Path:
    return with_noise(trained("sgd"), tmp_path)


def test_it_prints_answers_with_their_intervals_and_what_is_missing(run: Path, cli: Cli) -> None:
    out = cli("batch-size", run).out
    assert "How large may the batch be?" in out
    assert "A batch of 48 samples is below what the gradient noise supports: B_simple is" in out
    assert "(95 %" in out
    assert "time to target: no sweep over batches was given" in out
    assert "branches: no branches were given" in out


def test_show_has_a_line_on_the_noise(run: Path, trained: Callable[..., Path], cli: Cli) -> None:
    (line,) = (line for line in cli("show", run).out.splitlines() if line.startswith("noise scale"))
    (reason,) = (line for line in cli("batch-size", run).out.splitlines() if line.startswith("A batch of 48"))
    figure = reason.partition("B_simple is ")[2].partition(" at step")[0]
    assert line.split("  ")[-1].strip() == f"{figure} samples at step 24: the batch of 48 is below it"
    told = json.loads(cli("show", run, "--json").out)["noise_scale"]
    assert (told["step"], told["batch"], told["answer"], told["unit"]) == (24, 48.0, "below", "samples")
    assert told["low"] > 48
    assert told["simple_batch"] is told["high"] is None  # the interval has no upper end
    assert "noise scale" not in cli("show", trained("sgd")).out
    measured(run, 50, noise_skewness=9.0, heavy_tails=True)
    assert "at step 50, with heavy tails: the batch of 48 is beyond it" in cli("show", run).out


def test_heavy_tails_are_a_doubt(run: Path, cli: Cli) -> None:
    measured(run, 40, noise_skewness=0.1, heavy_tails=False)
    assert "heavy tails" not in cli("batch-size", run).out
    measured(run, 50, name="m2", noise_skewness=9.0, heavy_tails=True)
    out = cli("batch-size", run).out
    assert "(a probe on train data, BatchNorm mode eval, with heavy tails)" in out
    assert (
        "at step 50 a few of the probe's 100 gradients make much of tr Σ (skewness 9): the interval of B_simple" in out
    )
    assert "measure with more --samples" in out


def test_json_holds_everything_and_csv_the_answers(run: Path, cli: Cli, tmp_path: Path) -> None:
    told = json.loads(cli("batch-size", run, "--json", "--window", 20).out)
    (noise,) = told["noise"]
    assert (noise["window"], noise["verdict"]["answer"]) == (20, "below")
    assert told["time"] is told["branches"] is None
    cli("batch-size", run, "-o", tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_text(encoding="utf-8").startswith("answer,of,step,batch,value,low,high")


def test_a_run_without_noise_is_an_error_with_the_remedies(trained: Callable[..., Path], cli: Cli) -> None:
    done = cli("batch-size", trained("sgd"))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    for remedy in ("--noise ", "--noise-every", "batch-size RUN --checkpoint last", "record(noise=True)"):
        assert remedy in done.err


def test_with_a_checkpoint_it_measures_first(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def measure(job: Any) -> str:
        jobs.append(job)
        measured(job.run, 40, top_share=0.31, top_share_error=0.02, top_vectors=5)
        return "m"

    monkeypatch.setattr("tvlars_probe.runners.posthoc.noise.measure_noise", measure)
    done = cli("batch-size", run, "--checkpoint", "last", "--samples", 64, "--bn", "frozen-batch", "--dv", "cpu")
    assert "Measured, and kept with the run: m" in done.err
    assert "is beyond what the gradient noise supports" in done.out
    assert "31 % of the noise (standard error 2) lies along the Hessian's 5 top eigenvectors, at step 40" in done.out
    (job,) = jobs
    assert (job.run, job.checkpoint, job.split, job.samples, job.piece) == (run, "last", "train", 64, None)
    assert (job.bn_mode, job.eigenvectors, job.precision, job.place.devices) == ("frozen-batch", 0, None, ("cpu",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", 1), "--window 1 is too small (allowed: 2 or more"),
        (("--samples", 64, "--bn", "eval"), "--samples, --bn says how to measure, and nothing is measured"),
        (("--json", "--csv"), "two forms of one answer"),
        (("--phase", "pretrain"), "unknown phase"),
    ],
)
def test_it_refuses_what_it_would_pass_over(options: tuple[Any, ...], message: str, run: Path, cli: Cli) -> None:
    done = cli("batch-size", run, *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_it_measures_one_run_at_a_time(run: Path, trained: Callable[..., Path], cli: Cli) -> None:
    done = cli("batch-size", run, trained("lars"), "--checkpoint", "last")
    assert "--checkpoint measures one run, 2 were given" in done.err


def test_two_runs_are_two_rows(run: Path, trained: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(trained("lars"), other)
    add_noise(other, noise=8.0)
    told = json.loads(cli("batch-size", run, other, "--json").out)
    assert [noise["verdict"]["answer"] for noise in told["noise"]] == ["below", "beyond"]
    assert any("LARS scales each tensor by a norm" in doubt for doubt in told["doubts"])
