"""Signals, killed ranks and restarts, with real processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tvlars_probe
from tests.ranked import cli_on_ranks
from tests.runners.resumed import assert_same_run
from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = ("--devices", "cpu", "--limit", 96, "--bs", 32, "--train-eval-samples", 32, "--seed", 3, "--opt", "tvlars")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "-m")

# Every rank announces its step in a file and waits there until the test lets it go on.
STEP_BY_STEP = """
import os, pathlib, signal, time
def patch():
    from tvlars_probe.runners.phases.loop import Training
    update, here = Training.update, pathlib.Path(os.environ["HERE"])
    made = 0
    def held(self, *args):
        nonlocal made
        (here / f"rank{self.ranks.rank}-step{made}-pid{os.getpid()}").touch()
        while not (here / f"go{made}").exists() and not (here / "go").exists():
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                (here / "heard").touch()
            time.sleep(0.01)
        made += 1
        return update(self, *args)
    Training.update = held
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "tvlars_probe.runners.phases.loop":
            import sys, importlib.util
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            def exec_module(module):
                load(module)
                patch()
            spec.loader.exec_module = exec_module
            return spec
import sys
sys.meta_path.insert(0, Finder())
"""


class Held:
    """A training command whose steps the test lets pass one by one."""

    def __init__(self, folder: Path, *command: Any) -> None:
        self.folder = folder
        (folder / "sitecustomize.py").write_text(STEP_BY_STEP)
        environment = {"HERE": str(folder), "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        self.process = subprocess.Popen(
            [sys.executable, *[str(word) for word in command]],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip

    def wait_for(self, what: str | Callable[[], bool], seconds: float = 120, *, alive: bool = True) -> None:
        deadline = time.monotonic() + seconds
        while not (any(self.folder.glob(what)) if isinstance(what, str) else what()):
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            assert not alive or self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def go(self, step: int | str = "") -> None:
        (self.folder / f"go{step}").touch()

    def pid_of(self, rank: int, step: int) -> int:
        (found,) = self.folder.glob(f"rank{rank}-step{step}-pid*")
        return int(found.name.rpartition("pid")[2])

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err


def whole(folder: Path, *settings: Any, ranks: int = 2) -> None:
    """The same run, which nothing interrupts."""
    cli_on_ranks(ranks, "train", *TINY, "--epochs", 3, "--run-dir", "whole", *settings, cwd=folder)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uncut")
    whole(folder)
    return folder / "whole"


def train(*settings: Any) -> tuple[Any, ...]:
    return ("-m", "tvlars_probe", "train", *TINY, "--epochs", 3, "--run-dir", "cut", *settings)


def finish(folder: Path, *, ranks: int = 2) -> str:
    """Continue the run that was cut; what was printed."""
    return cli_on_ranks(ranks, "train", "--resume", "cut", cwd=folder)


def test_the_first_signal_ends_after_the_step_with_a_line_on_how_to_go_on(tmp_path: Path) -> None:
    held = Held(tmp_path, *train())
    held.go(0)
    held.wait_for("rank0-step1-*")
    held.process.send_signal(signal.SIGINT)
    held.wait_for("heard")
    held.go()
    code, err = held.end()
    assert code == 130
    assert err.strip() == "Interrupted; to continue: tvlars-probe train --resume cut"
    run = tvlars_probe.open_run(tmp_path / "cut")
    assert (run.status, run.steps()["step"].tolist()) == ("interrupted", [0, 1])
    assert [*checkpoints.list_checkpoints(run.path)] == [2]


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    held = Held(tmp_path, *train())
    held.wait_for("rank0-step0-*")
    held.process.send_signal(signal.SIGTERM)
    held.wait_for("heard")
    held.process.send_signal(signal.SIGTERM)
    code, _ = held.end()  # though the step is never let go
    assert code == -signal.SIGTERM
    assert tvlars_probe.open_run(tmp_path / "cut").status == "killed"


@pytest.mark.slow
def test_two_ranks_end_in_the_same_step_and_go_on_to_the_same_bits_or_on_one_rank(tmp_path: Path, uncut: Path) -> None:
    held = Held(tmp_path, *train("--nproc", 2))
    held.go(0)
    for rank in (0, 1):
        held.wait_for(f"rank{rank}-step1-*")
    held.process.send_signal(signal.SIGTERM)
    held.go()
    code, err = held.end()
    assert code == 143
    assert err.strip() == "Interrupted; to continue: tvlars-probe train --resume cut"
    run = tvlars_probe.open_run(tmp_path / "cut")
    assert run.status == "interrupted"
    there = len(run.steps())
    assert 2 <= there < 5
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "cut", tmp_path / "other" / "cut")
    assert f"from step-{there}.pt" in finish(tmp_path)
    assert_same_run(uncut, tmp_path / "cut")
    finish(tmp_path / "other", ranks=1)
    assert_goes_on(uncut, tmp_path / "other" / "cut", there, before=2, after=1)


@pytest.mark.slow
def test_a_second_signal_kills_both_ranks_at_once(tmp_path: Path) -> None:
    held = Held(tmp_path, *train("--nproc", 2))
    for rank in (0, 1):
        held.wait_for(f"rank{rank}-step0-*")
    ranks = [held.pid_of(rank, 0) for rank in (0, 1)]
    held.process.send_signal(signal.SIGINT)
    held.wait_for(lambda: all(ignores(pid) for pid in ranks))
    held.process.send_signal(signal.SIGINT)
    code, _ = held.end()
    assert code == 130
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ranks)  # noqa: PTH110


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_end_in_order(tmp_path: Path) -> None:
    held = Held(tmp_path, *train("--nproc", 2))
    for rank in (0, 1):
        held.wait_for(f"rank{rank}-step0-*")
    ranks = [held.pid_of(rank, 0) for rank in (0, 1)]
    held.process.kill()
    held.wait_for(lambda: all(ignores(pid) for pid in ranks), alive=False)
    held.go()
    code, _ = held.end()  # once the ranks have let go of its pipes
    assert code == -signal.SIGKILL
    run = tvlars_probe.open_run(tmp_path / "cut")
    assert run.status == "interrupted"
    assert checkpoints.list_checkpoints(run.path)


def ignores(pid: int) -> bool:
    """Whether a process ignores SIGTERM, as a rank does once it has heard the first one."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        mask = re.search(r"SigIgn:\s*(\w+)", status.read())
    return mask is not None and bool(int(mask[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_under_torchrun_a_signal_ends_in_order_too(tmp_path: Path, uncut: Path) -> None:
    held = Held(tmp_path, *TORCHRUN, *train()[1:])
    for rank in (0, 1):
        held.wait_for(f"rank{rank}-step0-*")
    held.process.send_signal(signal.SIGTERM)
    held.go()
    code, err = held.end()
    assert code != 0  # torchrun's own
    assert err.count("Interrupted; to continue: tvlars-probe train --resume cut") == 1
    run = tvlars_probe.open_run(tmp_path / "cut")
    assert run.status == "interrupted"
    cli_on_ranks(2, *train()[2:], cwd=tmp_path)  # torchrun starts the same command line again
    assert_same_run(uncut, tmp_path / "cut")


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint_when_the_first_rank_is_killed(tmp_path: Path, uncut: Path) -> None:
    """The one that writes; of two agents the other rank is killed in test_agents."""
    launcher = (*TORCHRUN[:-1], "--max-restarts", 2, "-m")
    held = Held(tmp_path, *launcher, *train("--checkpoint-steps", 1)[1:])
    held.go(0)
    held.go(1)
    held.wait_for("rank0-step2-*")
    held.wait_for("cut/checkpoints/step-2.pt")
    os.kill(held.pid_of(0, 2), signal.SIGKILL)
    held.go()
    code, err = held.end()
    assert code == 0, err
    run = tvlars_probe.open_run(tmp_path / "cut")
    assert len(run.manifest.segments) == 2
    assert run.manifest.segments[1]["first_step"] >= 2
    assert_same_run(uncut, tmp_path / "cut")


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_can_be_resumed(tmp_path: Path, uncut: Path, cli: Callable[..., Any]) -> None:
    held = Held(tmp_path, *train("--nproc", 2, "--checkpoint-steps", 1))
    held.go(0)
    held.wait_for("rank1-step1-*")
    os.kill(held.pid_of(1, 1), signal.SIGKILL)
    held.go()
    code, err = held.end()
    assert code == 1
    assert re.search(r"^Error: rank 1 failed: Signal 9 \(SIGKILL\)", err, re.MULTILINE)
    assert "Traceback" not in err
    assert tvlars_probe.open_run(tmp_path / "cut").status == "failed"
    refused = cli(*train("--nproc", 2)[2:])
    assert refused.code == 2
    assert "--resume cut, or --rerun" in refused.err
    assert "Continuing cut from step-1.pt" in finish(tmp_path)
    assert_same_run(uncut, tmp_path / "cut")


@pytest.mark.slow
def test_a_run_goes_on_with_two_ranks_instead_of_one(tmp_path: Path) -> None:
    whole(tmp_path, ranks=1)
    held = Held(tmp_path, *train())
    held.go(0)
    held.wait_for("rank0-step1-*")
    held.process.send_signal(signal.SIGTERM)
    held.go()
    assert held.end()[0] == 143
    there = len(tvlars_probe.open_run(tmp_path / "cut").steps())
    assert there < 5
    finish(tmp_path, ranks=2)
    assert_goes_on(tmp_path / "whole", tmp_path / "cut", there, before=1, after=2)


def assert_goes_on(whole: Path, cut: Path, there: int, *, before: int, after: int) -> None:
    """The run was continued with other ranks, says so, and agrees with the whole one to rounding."""
    runs = [tvlars_probe.open_run(path) for path in (whole, cut)]
    losses = [run.steps()["loss"].to_numpy() for run in runs]
    np.testing.assert_allclose(losses[1][: there + 5], losses[0][: there + 5], rtol=0, atol=1e-4)
    assert runs[0].steps()["samples"].tolist() == runs[1].steps()["samples"].tolist()
    np.testing.assert_allclose(runs[1].epochs()["train_loss"], runs[0].epochs()["train_loss"], rtol=1e-3)
    (note,) = runs[1].manifest.notes
    assert note.startswith(f"continued at step {there} on {after} rank(s) instead of {before}")
    assert [segment["world_size"] for segment in runs[1].manifest.segments] == [before, after]


def test_of_two_processes_on_one_run_the_second_is_refused(tmp_path: Path, cli: Callable[..., Any]) -> None:
    held = Held(tmp_path, *train())
    held.wait_for("rank0-step0-*")
    before = (tmp_path / "cut" / "run.json").read_bytes()
    for again in (train()[2:], ("train", "--resume", "cut")):
        second = cli(*again)
        assert second.code == 2
        assert "cut is being trained by another process: wait for it" in second.err
    assert (tmp_path / "cut" / "run.json").read_bytes() == before
    held.go()
    assert held.end()[0] == 0
    assert tvlars_probe.open_run(tmp_path / "cut").status == "completed"
