from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tvlars_probe
from tests.conftest import run_cli
from tests.runners.resumed import assert_same_run
from tests.runners.test_ranks import wait_for

PARENT = (
    "train", "--limit", 96, "--bs", 32, "--epochs", 2, "--dv", "cpu", "--threads", 1, "--opt", "sgd", "--lr", 0.05,
    "--checkpoint-steps", 2, "--keep-checkpoints", 0, "--run-dir", "runs/p",
)  # fmt: skip
BRANCHES = ("branch", "runs/p", "--checkpoint", 2, "--batch-sizes", "16,32", "--samples", 192)


def test_branches_are_made_told_and_skipped(cli: Any) -> None:
    assert cli(*PARENT).code == 0
    shown = cli(*BRANCHES, "--seeds", 2, "--dry-run")
    lines = shown.out.splitlines()
    assert len(lines) == 4
    assert lines[0] == "runs/p-branch-2-b16  batch 16, 12 steps, lr 0.03536, 6 evaluations"
    assert not Path("runs/p-branch-2-b16").exists()
    done = cli(*BRANCHES, "--seeds", 2)
    assert done.code == 0, done.err
    assert "4/4  batch size=32 seed=1  completed" in done.out
    assert "p at step 2, rate sqrt, 192 samples  Which batch starts to cost?" in done.out
    assert "- batch 16 is the yardstick" in done.out
    run = tvlars_probe.open_run("runs/p-branch-2-b16-s1")
    assert run.manifest.command == [str(word) for word in (*BRANCHES, "--lr-rule", "sqrt", "--seeds", 2)]
    stamp = Path("runs/p-branch-2-b16/run.json").stat().st_mtime_ns
    assert cli(*BRANCHES).out.count("completed") == 4  # a line and a row of the table for each
    assert Path("runs/p-branch-2-b16/run.json").stat().st_mtime_ns == stamp


def test_other_commands_work_on_branches(cli: Any) -> None:
    cli(*PARENT)
    cli(*BRANCHES)
    branch = "runs/p-branch-2-b16"
    assert "../p at step 2, batch 32 there, rate by sqrt, 192 samples from there" in cli("show", branch).out
    assert "p-branch-2-b32" in cli("runs").out
    for words in (("check", branch), ("check", "runs/p"), ("compare", "runs"), ("train", "--resume", branch),
                  ("chart", "loss", branch, "-o", "loss.json"), ("sharpness", branch, "--samples", 32)):  # fmt: skip
        done = cli(*words)
        assert done.code == 0, (words, done.err)
    assert Path("loss.json").exists()
    # A branch isn't taken for a run of the sweep that its parent belongs to.
    assert "step 2" in cli("compare", "runs").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch-sizes", "16;32"), "--batch-sizes 16;32: give whole numbers with commas, such as 64,128,256"),
        (("--batch-sizes", ","), "--batch-sizes names none"),
        (("--samples", 8), "--samples 8 is less than one batch"),
        (("--checkpoint", 9), "--checkpoint 9: there is none (allowed: last, best, or a step of 2"),
        (("--out", "runs/p"), "lies in the run directory"),
        (("--lr-rule", "cubic"), "Invalid value for '--lr-rule'"),
        (("--jobs", 0), "--jobs 0 is too few"),
    ],
)
def test_a_users_mistake_is_a_line(words: tuple[Any, ...], said: str, cli: Any) -> None:
    cli(*PARENT)
    done = cli(*BRANCHES, *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_branches_in_subprocesses_are_killed_and_continued(tmp_path: Path) -> None:
    """Two at once, both killed in the middle; the same command brings them to the bits of undisturbed ones."""
    pytest.importorskip("submitit")
    run_cli(*PARENT, cwd=tmp_path)
    longer = [*BRANCHES[:-1], 9600]
    run_cli(*longer, "--out", "whole", cwd=tmp_path)
    words = [str(word) for word in (*longer, "--out", "cut", "--launcher", "local", "--jobs", 2)]
    command = [sys.executable, "-m", "tvlars_probe", *words]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    runs = [tmp_path / "cut" / f"p-branch-2-b{size}" for size in (16, 32)]
    wait_for(lambda: all([*run.glob("checkpoints/*.pt")] for run in runs) or process.poll() is not None)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run_cli(*words, cwd=tmp_path)
    for run in runs:
        assert_same_run(tmp_path / "whole" / run.name, run, ("steps", "layers", "epochs"))


@pytest.mark.slow
def test_two_ranks_make_the_branch_that_one_makes(tmp_path: Path) -> None:
    run_cli(*PARENT, "--precision", "float64", "--nproc", 2, cwd=tmp_path)
    run_cli(*BRANCHES, cwd=tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    run_cli(*PARENT, "--precision", "float64", cwd=alone)
    run_cli(*BRANCHES, cwd=alone)
    for size in (16, 32):
        two, one = (
            tvlars_probe.open_run(folder / f"runs/p-branch-2-b{size}").steps(["loss", "lr"])
            for folder in (tmp_path, alone)
        )
        assert two["lr"].tolist() == one["lr"].tolist()
        assert two["loss"].tolist() == pytest.approx(one["loss"].tolist(), rel=1e-9)
