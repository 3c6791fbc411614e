"""Deviations from the official experiments that no other test holds (docs/evidence/differences.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvlars_probe
from tests.runners.phases.test_barlow_twins import config as twins
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.train import train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "evidence" / "differences.md").read_text(encoding="utf-8")


def test_each_difference_has_a_consequence_and_a_test_that_exists() -> None:
    entries = re.split(r"^\*\*(?=\d+\.)", PAGE, flags=re.MULTILINE)[1:]
    assert [int(entry.split(".")[0]) for entry in entries] == list(range(1, 16))
    for entry in entries:
        assert "*Test:*" in entry
        assert "*Consequence:*" in entry or "crashes" in entry or "have no names" in entry
    tests = {*re.findall(r"`(tests/[\w/]+\.py)`", PAGE)}
    assert tests
    assert all((ROOT / name).is_file() for name in tests)


def test_lamb_keeps_its_trust_ratio_in_barlow_twins(tmp_path: Path) -> None:
    ratios = {}
    for adam in (False, True):
        chosen = twins(optimizer=OptimizerConfig(name="lamb", lr=0.01, adam=adam))
        run = tvlars_probe.open_run(train(chosen, tmp_path / str(adam), quiet=True))
        pretraining = run.layers()[lambda frame: frame.step < 9]
        ratios[adam] = pretraining["trust_ratio"].to_numpy()
    assert (ratios[True] == 1).all()
    assert (ratios[False] != 1).mean() > 0.9


@pytest.mark.parametrize("mode", ["clf", "bt"])
@pytest.mark.parametrize("schedule", ["cosine", "lars-warm"])
def test_schedules_fall_once_over_the_phase_that_they_are_for(mode: str, schedule: str, tmp_path: Path) -> None:
    chosen = twins(
        mode=mode,
        epochs=6 if mode == "clf" else 1,
        barlow=BarlowTwinsConfig(epochs=6, projector="8-8"),
        schedule=ScheduleConfig(name=schedule),
    )
    run = tvlars_probe.open_run(train(chosen, tmp_path / "r", quiet=True))
    steps = run.steps()
    lr = steps[steps.phase != "linear"].lr.to_numpy()
    assert len(lr) == 18
    turns = np.diff(np.sign(np.diff(lr)))
    assert np.count_nonzero(turns) == (1 if schedule == "lars-warm" else 0)
    assert lr[-1] < 0.05 * lr.max()


def test_the_training_loss_is_the_mean_over_the_epochs_samples(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": DataConfig(limit=70), "batch_size": 32, "epochs": 3}
    chosen = TrainConfig(**settings, place=PlaceConfig(devices=("cpu",), threads=1))
    run = tvlars_probe.open_run(train(chosen, tmp_path / "r", quiet=True))
    steps, epochs = run.steps(), run.epochs()
    for epoch, loss in zip(epochs.epoch, epochs.train_loss, strict=True):
        batches = steps[steps.epoch == epoch]
        assert loss == pytest.approx(np.average(batches.loss, weights=[32, 32, 6]), rel=1e-6)
