"""What holds in every trainer: the rows of a plain loop, the same training, a trace that survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tvlars_probe
from tests.integrations.trainers import BATCH, STEPS, TRAINERS, Items, Job
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).parents[2]
CLOCKS = ["run", "time", "step_seconds", "probe_seconds"]
each_trainer = pytest.mark.parametrize("trainer", TRAINERS)
each_other = pytest.mark.parametrize("trainer", [name for name in TRAINERS if name != "plain"])


def rows(path: Path, table: str) -> pd.DataFrame:
    frame = tvlars_probe.open_run(path).frame(table).drop(columns=CLOCKS, errors="ignore")
    if "parameter" in frame:
        # Lightning's module holds the network under a name.
        frame["parameter"] = frame["parameter"].astype(str).str.removeprefix("net.")
    return frame


def assert_same_rows(mine: Path, plain: Path, tolerance: float) -> None:
    for table in ("steps", "layers"):
        a, b = rows(mine, table), rows(plain, table)
        assert a.columns.tolist() == b.columns.tolist()
        assert len(a) == len(b) > 0
        for column in a:
            if a[column].dtype.kind == "f":
                np.testing.assert_allclose(a[column], b[column], rtol=tolerance, err_msg=column)
            else:
                assert a[column].astype(str).tolist() == b[column].astype(str).tolist(), column


@each_other
@pytest.mark.parametrize(
    ("accumulation", "max_norm"), [(1, None), (3, None), (1, 0.3), (2, 0.3)],
    ids=["as it is", "accumulating", "clipping", "accumulating and clipping"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["SGD", "LARS"])
def test_the_rows_are_those_of_a_plain_loop(
    trainer: str, accumulation: int, max_norm: float | None, name: str, tmp_path: Path
) -> None:
    makes: dict[str, Any] = {
        "SGD": lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.9),
        "LARS": lambda params: tvlars_probe.LARS(params, lr=10.0),
    }
    for one in ("plain", trainer):
        TRAINERS[one](
            Job(
                path=tmp_path / one,
                accumulation=accumulation,
                max_norm=max_norm,
                folder=tmp_path,
                optimizer=makes[name],
            )
        )
    # The arithmetic is the same but for accumulation, whose losses are divided before or after they are added.
    assert_same_rows(tmp_path / trainer, tmp_path / "plain", 1e-6 if accumulation > 1 or max_norm else 0.0)
    run = tvlars_probe.open_run(tmp_path / trainer)
    assert (run.status, run.manifest.total_steps) == ("completed", STEPS)
    assert run.steps()["clip_scale"].notna().all() == (max_norm is not None)


@each_trainer
def test_the_training_is_the_same_with_and_without(trainer: str, tmp_path: Path) -> None:
    models = []
    for path in (None, tmp_path / "r"):
        models.append(TRAINERS[trainer](Job(path=path, accumulation=2, max_norm=0.3, folder=tmp_path)))
        generator = torch.get_rng_state()
        if path is None:
            before = generator
    assert torch.equal(before, generator)
    pairs = zip(*(model.state_dict().values() for model in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@each_other
def test_sharpness_is_measured_as_in_a_plain_loop(trainer: str, tmp_path: Path) -> None:
    curves = []
    for one in ("plain", trainer):
        TRAINERS[one](Job(path=tmp_path / one, folder=tmp_path, measures=True))
        curves.append(tvlars_probe.open_run(tmp_path / one).curvature())
    assert [curve.step.tolist() for curve in curves] == [[0, 2, 4]] * 2
    np.testing.assert_allclose(curves[1].value, curves[0].value, rtol=1e-5)


@each_trainer
def test_a_finding_ends_the_training(trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps after the one whose loss is NaN: the next begins with the flush, and at its end all ranks know."""
    monkeypatch.setattr(TraceWriter, "due", True)
    items, told = Items(BATCH * STEPS, None), list[str]()
    items.x[2 * BATCH + 3] = torch.nan
    options = {"stop_on": ("non_finite",), "on_finding": lambda finding: told.append(f"{finding.rule} {finding.step}")}
    TRAINERS[trainer](Job(path=tmp_path / "r", folder=tmp_path, data=items, options=options))
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == [0, 1, 2, 3]
    assert told == ["non_finite 2"]
    assert run.findings()["step"].tolist() == [2]
    assert run.status == "diverged"


class BrokenDataError(Exception):
    """What a data set of a user's raises."""


@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name != "transformers"])
@pytest.mark.parametrize(("error", "status"), [(BrokenDataError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_the_trace_survives_an_error(
    trainer: str, error: type[BaseException], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the data set, in the middle of the fourth step."""
    # Lightning ignores Ctrl+C from then on, and ends the process.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises((error, SystemExit)):
        TRAINERS[trainer](Job(path=tmp_path / "run", folder=tmp_path, fault=(3 * BATCH + 2, error("mine"))))
    # accelerate's loaders read a batch ahead: there the third step isn't begun.
    assert_whole(tmp_path / "run", status, steps=2 if trainer == "accelerate" else 3)


@pytest.mark.parametrize(("error", "status"), [(BrokenDataError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_the_trace_survives_an_error_that_no_call_back_is_told_of(
    error: type[BaseException], status: str, tmp_path: Path
) -> None:
    """transformers' Trainer: the script ends, and with it the recording."""
    done = script("transformers", tmp_path, f"(3 * BATCH + 2, {error.__name__}('mine'))")
    assert done.returncode != 0
    assert error.__name__ in done.stderr
    assert "never left" not in done.stderr
    assert_whole(tmp_path / "run", status, steps=2)


def assert_whole(path: Path, status: str, steps: int) -> None:
    run = tvlars_probe.open_run(path)
    assert run.status == status
    assert run.steps()["step"].tolist() == [*range(steps)]
    assert {*run.layers()["step"]} == {*range(steps)}
    assert run.steps()["loss"].notna().all()
    if status == "failed":
        assert any("BrokenDataError: mine" in note for note in run.manifest.notes)


@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
def test_the_trace_survives_sigterm(trainer: str, tmp_path: Path) -> None:
    """Lightning hears the signal and ends in order; the Trainer's process is killed by it, as a plain loop's is."""
    script(trainer, tmp_path, "(4 * BATCH + 2, None)")
    run = tvlars_probe.open_run(tmp_path / "run")
    assert run.status == ("killed" if trainer == "transformers" else "interrupted")
    steps = run.steps()["step"].tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 2


def script(trainer: str, folder: Path, fault: str) -> subprocess.CompletedProcess[str]:
    """The training in a process of its own; rows are flushed after each step, as those of long steps are."""
    text = (
        "import os, signal, torch\n"
        "from pathlib import Path\n"
        "from tests.integrations.trainers import BATCH, TRAINERS, Items, Job\n"
        "from tests.integrations.test_contract import BrokenDataError\n"
        "from tvlars_probe.traces import writer\n"
        "writer.FIRST_FLUSH_SECONDS = writer.LAST_FLUSH_SECONDS = 0.0\n"
        f"fault = {fault}\n"
        "if fault[1] is None:\n"
        "    get = Items.__getitem__\n"
        "    def killed(self, index):\n"
        "        if index == fault[0]:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return get(self, index)\n"
        "    Items.__getitem__ = killed\n"
        "    job = Job(path=Path('run'), folder=Path('.'))\n"
        "else:\n"
        "    job = Job(path=Path('run'), folder=Path('.'), fault=fault)\n"
        f"TRAINERS[{trainer!r}](job)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
