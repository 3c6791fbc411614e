"""Several ranks against one, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tvlars_probe
from tests.conftest import run_cli
from tests.ranked import cli_on_ranks
from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from pathlib import Path

TINY = ("--devices", "cpu", "--train-eval-samples", 100, "--seed", 3)


def assert_runs_agree(one: Path, two: Path, tolerance: float) -> None:
    """Parameters and recorded norms of the two runs agree within ``tolerance``, relative to their size."""
    runs = [tvlars_probe.open_run(path) for path in (one, two)]
    frames = [r.layers() for r in runs]
    assert frames[0][["step", "parameter"]].astype(str).equals(frames[1][["step", "parameter"]].astype(str))
    for column in ("weight_norm", "grad_norm", "weight_grad_dot", "direction_norm", "update_norm", "trust_ratio"):
        if frames[0][column].isna().all():
            continue
        a, b = (frame[column].to_numpy(float) for frame in frames)
        scale = np.maximum(np.abs(a), np.abs(a).mean())
        assert (np.abs(a - b) / scale).max() <= tolerance, column
    losses = [r.steps()["loss"].to_numpy() for r in runs]
    np.testing.assert_allclose(*losses, rtol=tolerance)
    assert runs[0].steps()["samples"].tolist() == runs[1].steps()["samples"].tolist()
    for table in ("train_loss", "train_acc1", "test_loss", "test_acc1", "test_acc5"):
        a, b = (r.epochs()[table].to_numpy(float) for r in runs)
        np.testing.assert_allclose(a, b, rtol=max(tolerance, 1e-9))
    weights = [checkpoints.load(list(checkpoints.list_checkpoints(r.path).values())[-1])["model"] for r in runs]
    for key, value in weights[0].items():
        assert (value - weights[1][key]).abs().max() <= tolerance * value.abs().max()


@pytest.mark.parametrize(
    ("optimizer", "batch", "epochs", "precision", "tolerance"),
    [
        pytest.param("lars", 287, 1, "float32", 1e-5, id="lars-5 steps in float32"),
        pytest.param("tvlars", 57, 2, "float64", 1e-9, id="tvlars-52 steps in float64, odd"),
        pytest.param("tvlars", 287, 1, "float32", 1e-5, id="tvlars-5 steps in float32"),
        pytest.param("lars", 57, 2, "float64", 1e-9, id="lars-52 steps in float64, odd"),
        pytest.param("lamb", 57, 2, "float64", 1e-9, id="lamb-52 steps in float64, odd"),
    ],
)
def test_two_ranks_train_as_one(
    tmp_path: Path, optimizer: str, batch: int, epochs: int, precision: str, tolerance: float
) -> None:
    for name, nproc in (("one", 1), ("two", 2)):
        cli_on_ranks(
            nproc, "train", *TINY, "--opt", optimizer, "--lr", 1, "--bs", batch, "--epochs", epochs,
            "--precision", precision, "--run-dir", name, cwd=tmp_path,
        )  # fmt: skip
    assert_runs_agree(tmp_path / "one", tmp_path / "two", tolerance)
    assert tvlars_probe.open_run(tmp_path / "two").manifest.world_size == 2


def test_a_batch_smaller_than_the_ranks_is_trained_right(tmp_path: Path) -> None:
    """33 samples in batches of 16 leave one: the second rank has nothing to do in the last step."""
    for name, nproc in (("one", 1), ("two", 2)):
        cli_on_ranks(
            nproc, "train", *TINY, "--limit", 33, "--bs", 16, "--epochs", 2, "--precision", "float64",
            "--micro-batch", 3, "--opt", "adamw", "--run-dir", name, cwd=tmp_path,
        )  # fmt: skip
    assert_runs_agree(tmp_path / "one", tmp_path / "two", 1e-9)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "import tvlars_probe.data.batches as b\n"
        "whole = b.BatchPlan.epoch\n"
        "def epoch(self, *args):\n"
        "    if os.environ.get('RANK') == '1':\n"
        "        raise ValueError('rank one has had enough')\n"
        "    return whole(self, *args)\n"
        "b.BatchPlan.epoch = epoch\n"
    )
    done = run_cli("train", *TINY, "--nproc", 2, "--run-dir", "r", cwd=tmp_path, check=False, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "rank 1 failed: ValueError: rank one has had enough" in done.stderr
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.status == "failed"
    assert "rank one has had enough" in run.manifest.notes[-1]


def start(tmp_path: Path, *args: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tvlars_probe", "train", *[str(a) for a in (*TINY, *args)]],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_of_two_ranks_can_be_read_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    settings = ("--opt", "tvlars", "--bs", 64, "--epochs", 8, "--run-dir")
    cli_on_ranks(2, "train", *TINY, *settings, "whole", cwd=tmp_path)
    process = start(tmp_path, "--nproc", 2, *settings, "cut")
    wait_for(lambda: len(checkpoints.list_checkpoints(tmp_path / "cut")) > 0 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = tvlars_probe.open_run(tmp_path / "cut")
    wait_for(lambda: tvlars_probe.open_run(tmp_path / "cut").status != "running", 20)
    assert tvlars_probe.open_run(tmp_path / "cut").status == "killed"
    steps = killed.steps()["step"].tolist()
    assert steps == list(range(len(steps)))
    cli_on_ranks(2, "train", "--resume", "cut", cwd=tmp_path)
    runs = [tvlars_probe.open_run(tmp_path / name) for name in ("whole", "cut")]
    for table in ("steps", "layers", "epochs"):
        clocks = ["run", "time", "step_seconds", "probe_seconds", "seconds"]
        a, b = (r.frame(table).drop(columns=clocks, errors="ignore") for r in runs)
        assert a.equals(b), table
    weights = [checkpoints.load(list(checkpoints.list_checkpoints(r.path).values())[-1])["model"] for r in runs]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
