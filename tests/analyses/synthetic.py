"""Traces whose answer is known by construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tvlars_probe.analyses.facts import RunFacts

ETA = 0.001


def lars_facts(names: tuple[str, ...], *, biases: tuple[str, ...] = (), **further: Any) -> RunFacts:
    """A LARS run of these tensors; ``biases`` are left out of adaptation."""
    rows = [
        {
            "name": name,
            "layer": name.split(".")[0],
            "kind": "bias" if name in biases else "linear",
            "shape": [8] if name in biases else [8, 8],
            "numel": 8,
            "optimizer": 0,
            "group": 0,
            "adapted": name not in biases,
            "decayed": name not in biases,
        }
        for name in names
    ]
    group = {
        "optimizer": "LARS",
        "eta": ETA,
        "weight_decay": 0.0,
        "momentum": {"form": "heavy-ball", "beta": 0.9},
        "variant": {"denominator": "decayed", "exclusion": "ndim", "trust_clip": False,
                    "weight_decay_filter": True, "lars_adaptation_filter": True},
    }  # fmt: skip
    told: dict[str, Any] = {
        "name": "made",
        "optimizer": "LARS",
        "schedule": "none",
        "peak_lr": 1.0,
        "steps_per_epoch": 5,
    }
    return RunFacts(**{**told, **further}, groups=[group], parameters=pd.DataFrame(rows))


def layers(
    weight_norm: dict[str, np.ndarray],
    grad_norm: dict[str, np.ndarray],
    lr: np.ndarray,
    *,
    biases: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Rows of ``layers`` as LARS without decay records them."""
    frames = []
    for name, w in weight_norm.items():
        g = grad_norm[name]
        trust = np.ones(len(w)) if name in biases else ETA * w / g
        frames.append(
            pd.DataFrame(
                {
                    "step": np.arange(len(w)),
                    "parameter": name,
                    "weight_norm": w.astype(np.float32),
                    "grad_norm": g.astype(np.float32),
                    "direction_norm": g.astype(np.float32),
                    "trust_ratio": trust.astype(np.float32),
                    "phi": np.float32(np.nan),
                    "lr": lr.astype(np.float32),
                    "update_norm": (lr * trust * g).astype(np.float32),
                }
            )
        )
    frame = pd.concat(frames, ignore_index=True).sort_values("step", kind="stable")
    return frame.assign(parameter=frame["parameter"].astype("category"))


def losses(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"step": np.arange(len(values)), "loss": values})


def warm(steps: int, warmup: int) -> np.ndarray:
    """Linear warm-up to 1, then constant."""
    return np.minimum(np.arange(steps) / warmup, 1.0)
