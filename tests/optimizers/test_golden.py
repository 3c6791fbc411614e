"""Ours against trajectories of the official implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tvlars_probe import LAMB, LARS, TVLARS
from tvlars_probe.optimizers.schedules import ScheduleConfig

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = np.load(GOLDEN / "optimizer_trajectories.npz")
INDEX = json.loads((GOLDEN / "optimizer_trajectories.json").read_text())
CLASSES = {"lars": LARS, "tvlars": TVLARS, "lamb": LAMB}
CAP = 10.0


def name(case: dict[str, Any]) -> str:
    return f"{case['case']}-{case['optimizer']}-{case['problem']}"


@pytest.mark.parametrize("foreach", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("case", INDEX["cases"], ids=name)
def test_parameters_and_logs_follow_the_official_ones(case: dict[str, Any], foreach: bool) -> None:
    hyper, prefix = case["hyperparameters"], f"case{case['case']}"
    grads = [DATA[f"{case['problem']}/grads{j}"] for j in range(len(INDEX["shapes"]))]
    params = [torch.nn.Parameter(torch.tensor(DATA[f"{case['problem']}/param{j}"])) for j in range(len(grads))]
    adapted = [j for j, p in enumerate(params) if not (hyper.get("lars_adaptation_filter") and p.ndim == 1)]
    optimizer = CLASSES[case["optimizer"]](params, foreach=foreach, **hyper)

    for step in range(INDEX["steps"]):
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g[step])
        optimizer.step()

        last = optimizer.last_step
        assert last is not None
        weight_norm, direction_norm, ratio = (
            getattr(last, column)[adapted].numpy() for column in ("weight_norm", "direction_norm", "trust_ratio")
        )
        if case["optimizer"] != "lars":
            weight_norm = np.minimum(weight_norm, CAP)
        if case["optimizer"] == "tvlars":
            direction_norm = np.minimum(direction_norm, CAP)
        np.testing.assert_allclose(weight_norm, DATA[f"{prefix}/weight_norm"][step], rtol=2e-5)
        np.testing.assert_allclose(direction_norm, DATA[f"{prefix}/update_norm"][step], rtol=2e-5)
        if not hyper.get("adam"):
            applied = np.where(weight_norm > 0, DATA[f"{prefix}/trust_ratio"][step], 1.0)
            np.testing.assert_allclose(ratio, applied, rtol=2e-5)
        else:
            assert (ratio == 1).all()

        if step + 1 in INDEX["params_after_steps"]:
            row = INDEX["params_after_steps"].index(step + 1)
            for j, p in enumerate(params):
                np.testing.assert_allclose(p.detach().numpy(), DATA[f"{prefix}/param{j}"][row], rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize(
    "table", json.loads((GOLDEN / "lars_warm_schedule.json").read_text()), ids=lambda t: t["batch_size"]
)
def test_lars_warm_is_the_official_table(table: dict[str, Any]) -> None:
    schedule = ScheduleConfig(name="lars-warm", warmup_epochs=table["warmup_epochs"]).build(
        epochs=table["epochs"], steps_per_epoch=table["steps_per_epoch"], batch_size=table["batch_size"]
    )
    rates = [table["lr"] * schedule.factor(step) for step in range(len(table["lr_per_step"]))]
    np.testing.assert_allclose(rates, table["lr_per_step"], rtol=1e-12)
