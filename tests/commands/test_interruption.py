"""Ctrl-C in commands that take long: one line, which is true of what is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tvlars_probe
from tvlars_probe.errors import InterruptedRunError

QUICK = ("--limit", 40, "--bs", 20, "--epochs", 2, "--devices", "cpu", "--threads", 1, "--model", "mlp",
         "--train-eval-samples", 0)  # fmt: skip


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def at_call(number: int, function: Any) -> Any:
    """``function``, interrupted when it is called for the ``number``-th time."""
    calls = iter(range(1, number + 1))

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return called


@pytest.fixture
def run(cli: Any) -> Path:
    done = cli("train", *QUICK, "--keep-checkpoints", 0, "--run-dir", "r")
    assert done.code == 0, done.err
    return Path("r")


def test_a_measurement_keeps_the_checkpoints_that_it_has_finished(
    run: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvlars_probe.runners.posthoc import curvature

    monkeypatch.setattr(curvature, "measure", at_call(2, curvature.measure))
    done = cli("sharpness", "r", "--checkpoint", "all", "--samples", 40)
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1].startswith("Interrupted: the figures of step 2 are kept with the run;")
    assert tvlars_probe.open_run("r").curvature()["step"].tolist() == [2]
    monkeypatch.setattr(curvature, "measure", interrupt)
    again = cli("sharpness", "r", "--samples", 40)
    assert again.err.splitlines()[-1].startswith("Interrupted: no checkpoint was measured to the end")
    assert len(tvlars_probe.open_run("r").curvature()) == 1


def test_the_noise_of_checkpoints_is_kept_too(run: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvlars_probe.runners.posthoc import noise

    monkeypatch.setattr(noise, "noise_of", at_call(2, noise.noise_of))
    done = cli("batch-size", "r", "--checkpoint", "all", "--samples", 20)
    assert done.code == 130
    assert done.err.splitlines()[-1].startswith("Interrupted: the noise at 1 checkpoint is kept with the run")
    assert tvlars_probe.open_run("r").noise()["step"].nunique() == 1


def test_half_a_slice_is_not_kept(run: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvlars_probe.runners.posthoc import landscape

    monkeypatch.setattr(landscape, "_scores", at_call(2, landscape._scores))
    done = cli("landscape", "r", "--points", 3, "--samples", 20, "--dv", "cpu")
    assert (done.code, done.out) == (130, "")
    assert done.err.endswith("Interrupted: a slice is kept only when it is whole; the same command begins again\n")
    assert len(tvlars_probe.open_run("r").frame("landscape")) == 0


def test_a_sweep_says_how_many_are_finished(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvlars_probe.runners.sweeps import sweep

    def stopped(*_: Any) -> None:
        raise InterruptedRunError(15, "advice for one run")

    words = ("sweep", "--opt", "lars", "sgd", *QUICK, "--out", "s")
    ends = iter([sweep.carry_out, stopped])
    monkeypatch.setattr(sweep, "carry_out", lambda *args: next(ends)(*args))
    done = cli(*words)
    assert done.code == 143
    assert done.err == (
        "Interrupted: 1 of 2 runs finished; the same command goes on, with what was cut off from its last checkpoint\n"
    )


def test_a_certificate_keeps_nothing(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.runners.certificate._outcomes", interrupt)
    done = cli("certify")
    assert (done.code, done.err) == (130, "Interrupted: nothing is kept; the same command begins again\n")


def test_other_commands_begin_again(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.runs.open_runs", interrupt)
    Path("r").mkdir()
    done = cli("compare", "r")
    assert (done.code, done.err.strip()) == (130, "Interrupted: the same command begins again")


@pytest.mark.parametrize(("rank", "says"), [("0", True), ("1", False)])
def test_of_torchruns_ranks_one_tells_what_came_of_it(
    rank: str, says: bool, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tvlars_probe.runners.train.train", lambda *_, **__: Path("r"))
    monkeypatch.setattr("tvlars_probe.commands.train._summarise", lambda path: print(f"Run: {path}"))
    done = cli("train", *QUICK)
    assert done.out == ("Run: r\n" if says else "")
