"""Ours against trajectories of the official implementation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.optimizers.trajectories import GOLDEN, INDEX, followed, name_of
from tvlars_probe.optimizers.schedules import ScheduleConfig


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("case", INDEX["cases"], ids=name_of)
def test_parameters_and_logs_follow_the_official_ones(case: dict[str, Any], foreach: bool) -> None:
    for what, ours, official, atol in followed(case, torch.device("cpu"), foreach=foreach):
        np.testing.assert_allclose(ours, official, rtol=2e-5, atol=atol, err_msg=what)


@pytest.mark.parametrize(
    "table", json.loads((GOLDEN / "lars_warm_schedule.json").read_text()), ids=lambda t: t["batch_size"]
)
def test_lars_warm_is_the_official_table(table: dict[str, Any]) -> None:
    schedule = ScheduleConfig(name="lars-warm", warmup_epochs=table["warmup_epochs"]).build(
        epochs=table["epochs"], steps_per_epoch=table["steps_per_epoch"], batch_size=table["batch_size"]
    )
    rates = [table["lr"] * schedule.factor(step) for step in range(len(table["lr_per_step"]))]
    np.testing.assert_allclose(rates, table["lr_per_step"], rtol=1e-12)
