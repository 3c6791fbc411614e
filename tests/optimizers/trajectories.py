"""The official implementation's trajectories, and an optimizer of ours led along them on any device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvlars_probe import LAMB, LARS, TVLARS

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = np.load(GOLDEN / "optimizer_trajectories.npz")
INDEX = json.loads((GOLDEN / "optimizer_trajectories.json").read_text())
CLASSES: dict[str, Any] = {"lars": LARS, "tvlars": TVLARS, "lamb": LAMB}
CAP = 10.0


def name_of(case: dict[str, Any]) -> str:
    return f"{case['case']}-{case['optimizer']}-{case['problem']}"


def follow(case: dict[str, Any], device: torch.device, *, foreach: bool, **settings: Any) -> None:
    """Give our optimizer a case's gradients; after each step norms, ratios and weights must be the official ones."""
    hyper, prefix = case["hyperparameters"], f"case{case['case']}"
    grads = [DATA[f"{case['problem']}/grads{j}"] for j in range(len(INDEX["shapes"]))]
    starts = [torch.tensor(DATA[f"{case['problem']}/param{j}"], device=device) for j in range(len(grads))]
    params = [torch.nn.Parameter(start) for start in starts]
    adapted = [j for j, p in enumerate(params) if not (hyper.get("lars_adaptation_filter") and p.ndim == 1)]
    optimizer = CLASSES[case["optimizer"]](params, foreach=foreach, **hyper, **settings)

    for step in range(INDEX["steps"]):
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g[step], device=device)
        optimizer.step()

        last = optimizer.last_step
        assert last is not None
        weight_norm, direction_norm, ratio = (
            getattr(last, column)[adapted].cpu().numpy() for column in ("weight_norm", "direction_norm", "trust_ratio")
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
                official = DATA[f"{prefix}/param{j}"][row]
                np.testing.assert_allclose(p.detach().cpu().numpy(), official, rtol=2e-5, atol=5e-6)
