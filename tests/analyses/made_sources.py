"""Runs whose curves are known by construction, in place of recorded ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tvlars_probe.analyses.facts import RunFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass
class MadeSource:
    """What `tvlars_probe.analyses.source.Source` gives of a run, from frames."""

    facts: RunFacts
    rows: dict[str, pd.DataFrame] = field(default_factory=dict)

    def epochs(self, columns: Sequence[str]) -> pd.DataFrame:
        return self.rows["epochs"].reindex(columns=[*columns])

    def steps(self, columns: Sequence[str]) -> pd.DataFrame:
        return self.rows["steps"].reindex(columns=[*columns])

    @property
    def peak_lr(self) -> float | None:
        return self.facts.peak_lr if self.facts.peak_lr is not None else self.facts.lr

    def lacks(self, table: str, column: str = "step") -> bool:
        rows = self.rows[table]
        return column not in rows or bool(rows[column].isna().all())


def made_run(
    batch: int,
    lr: float,
    seed: int,
    loss: Callable[[np.ndarray], np.ndarray],
    *,
    samples: int,
    every: int,
    **facts: Any,
) -> Any:
    """A run whose ``train_eval_loss`` after x samples is ``loss(x)``, evaluated every so many samples."""
    at = np.arange(every, samples + 1, every)
    step = np.arange(samples // batch)
    told: dict[str, Any] = {"optimizer": "SGD", "model": "cnn", "data": "digits", "schedule": "none", **facts}
    return MadeSource(
        RunFacts(name=f"b{batch}-lr{lr:g}-s{seed}", batch_size=batch, peak_lr=lr, seed=seed, **told),
        {
            "epochs": pd.DataFrame({"step": at // batch, "epoch": np.arange(len(at)), "train_eval_loss": loss(at)}),
            "steps": pd.DataFrame({"step": step, "samples": (step + 1) * batch, "loss": loss((step + 0.5) * batch)}),
        },
    )


def made_branch(batch: int, seed: int, loss: Sequence[float], *, samples: int = 4096, **facts: Any) -> Any:
    """A branch with these losses at its evaluations, at equal distances in samples."""
    told = {"parent": "../p", "run_id": "p-1", "step": 40, "samples": samples, "lr_rule": "sqrt", "order": "own"}
    told |= facts.pop("branch", {})
    epochs = pd.DataFrame({"epoch": np.arange(len(loss)), "train_eval_loss": np.array(loss, float)})
    facts = {"epochs": len(loss), "peak_lr": 0.1, **facts}
    return MadeSource(
        RunFacts(name=f"p-branch-40-b{batch}-s{seed}", batch_size=batch, seed=seed, config={"branch": told}, **facts),
        {"epochs": epochs},
    )
