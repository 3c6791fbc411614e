"""Two ranks under each trainer's DDP against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvlars_probe
from tests.integrations.test_contract import assert_same_rows
from tests.integrations.trainers import BATCH, STEPS, TRAINERS, Job
from tests.ranked import on_ranks


def job(folder: Path, name: str, **settings: Any) -> Job:
    return Job(
        path=folder / name, folder=folder, max_norm=0.3, accumulation=2, measures=True,
        optimizer=lambda params: tvlars_probe.LARS(params, lr=10.0), **settings,
    )  # fmt: skip


def train(rank: int, world_size: int, folder: str) -> bool:
    for name in TRAINERS:
        # Not DDP's warnings: each rank's are its own process's.
        TRAINERS[name](job(Path(folder), f"{name} on ranks", ranks=world_size))
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    (made / "results").mkdir()
    on_ranks(train, 2, made / "results", str(made))
    TRAINERS["plain"](job(made, "one process", size=2 * BATCH))
    return made


@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_ranks_record_what_one_process_does(trainer: str, folder: Path) -> None:
    run = tvlars_probe.open_run(folder / f"{trainer} on ranks")
    assert (run.manifest.world_size, run.status, len(run.steps())) == (2, "completed", STEPS // 2)
    assert_same_rows(folder / f"{trainer} on ranks", folder / "one process", 1e-5)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_ranks_measure_the_sharpness_that_one_process_does(trainer: str, folder: Path) -> None:
    found, expected = (
        tvlars_probe.open_run(folder / name).curvature() for name in (f"{trainer} on ranks", "one process")
    )
    assert found.step.tolist() == expected.step.tolist() == [0, 2]
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
