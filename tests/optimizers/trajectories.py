"""The official implementation's trajectories, and an optimizer of ours led along them on any device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from tvlars_probe import LAMB, LARS, TVLARS

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = np.load(GOLDEN / "optimizer_trajectories.npz")
INDEX = json.loads((GOLDEN / "optimizer_trajectories.json").read_text())
CLASSES: dict[str, Any] = {"lars": LARS, "tvlars": TVLARS, "lamb": LAMB}
CAP = 10.0


def name_of(case: dict[str, Any]) -> str:
    return f"{case['case']}-{case['optimizer']}-{case['problem']}"


class Compared(NamedTuple):
    """A quantity after some step, as we have it and as the official implementation has it, within ``atol`` + 2e-5."""

    what: str
    ours: Any
    official: Any
    atol: float = 0.0


def followed(case: dict[str, Any], device: torch.device, *, foreach: bool, **settings: Any) -> Iterator[Compared]:
    """Give our optimizer a case's gradients; yield its norms, ratios and weights beside the official ones."""
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
        weight_norm, direction_norm, ratio = (
            getattr(optimizer.last_step, column)[adapted].cpu().numpy()
            for column in ("weight_norm", "direction_norm", "trust_ratio")
        )
        # The official logs hold clamped norms; ours aren't.
        if case["optimizer"] != "lars":
            weight_norm = np.minimum(weight_norm, CAP)
        if case["optimizer"] == "tvlars":
            direction_norm = np.minimum(direction_norm, CAP)
        yield Compared(f"weight norms, step {step}", weight_norm, DATA[f"{prefix}/weight_norm"][step])
        yield Compared(f"direction norms, step {step}", direction_norm, DATA[f"{prefix}/update_norm"][step])
        logged = np.ones_like(ratio) if hyper.get("adam") else DATA[f"{prefix}/trust_ratio"][step]
        yield Compared(f"trust ratios, step {step}", ratio, np.where(weight_norm > 0, logged, 1.0))
        if step + 1 in INDEX["params_after_steps"]:
            row = INDEX["params_after_steps"].index(step + 1)
            for j, p in enumerate(params):
                official = DATA[f"{prefix}/param{j}"][row]
                yield Compared(f"weights {j}, step {step}", p.detach().cpu().numpy(), official, atol=5e-6)
