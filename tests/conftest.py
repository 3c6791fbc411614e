"""What all tests share: one torch thread each (tests run side by side), and the command line in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before numpy is imported: its linear algebra would start a thread per core in every process that runs tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from click.testing import CliRunner

from tests.recorded import measured, recorded, trained  # noqa: F401 (fixtures)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

torch.set_num_threads(1)

HERE = Path(__file__).parent


def _runs_slow_ones(config: pytest.Config) -> bool:
    return config.option.markexpr == "slow"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A worker more than cores for the slow tests, which wait for processes of their own much of their time."""
    cores = len(os.sched_getaffinity(0))
    return cores + 1 if _runs_slow_ones(config) else None  # None: xdist's own number


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the slow tests those of the whole project first, then the runners': begun last, a long one would run alone."""
    if _runs_slow_ones(config):
        items.sort(key=lambda item: (item.path.parent != HERE, HERE / "runners" not in item.path.parents))


@pytest.fixture
def mesh_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mesh of one rank, on which DTensors can be made."""
    import torch.distributed as dist

    from tvlars_probe.runners.launching.process_group import leave

    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    leave()


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run `tvlars-probe` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Outcome:
        from tvlars_probe.cli import main

        result = CliRunner().invoke(main, [str(a) for a in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        torch.set_num_threads(1)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


def run_cli(*args: object, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m tvlars_probe` in a process of its own, one torch thread a rank."""
    done = subprocess.run(
        [sys.executable, "-m", "tvlars_probe", *[str(a) for a in args]],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
