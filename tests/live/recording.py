"""A run that is recorded step by step, as a trainer would, with chosen figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tvlars_probe.admission.names import encodable
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

BEGAN = 1_700_000_000_000_000
"""When step 0 ended, in microseconds since 1970; each further step takes half a second."""


def begin(path: Path, **facts: Any) -> Journal:
    journal = Journal.create(path, Manifest(run_id=f"{encodable(path.name)}.id", **facts))
    journal.begin_segment(0)
    return journal


def resume(path: Path, step: int) -> Journal:
    journal = Journal.resume(path, Manifest(run_id="new"), step)
    journal.begin_segment(step)
    return journal


def steps(journal: Journal, first: int, end: int, *, phase: str = "train", loss: Callable[[int], float | None] = float,
          seconds: float = 0.5) -> None:  # fmt: skip
    numbers = [*range(first, end)]
    times = pa.array([BEGAN + int(step * seconds * 1e6) for step in numbers], pa.timestamp("us", tz="UTC"))
    journal.append(
        "steps",
        {
            "step": numbers, "phase": [phase] * len(numbers), "loss": pa.array(map(loss, numbers), pa.float64()),
            "lr": [0.1] * len(numbers), "time": times,
            "grad_norm": [2.0 if step % 2 == 0 else None for step in numbers],
        },
    )  # fmt: skip


def layers(journal: Journal, step: int, names: Sequence[str], **figures: Sequence[float | None]) -> None:
    """One recorded step of these tensors; figures that aren't given are one."""
    given = {
        name: np.ones(len(names), np.float32) for name in ("weight_norm", "grad_norm", "update_norm", "trust_ratio")
    }
    columns: dict[str, Any] = {**given, **{name: pa.array(values, pa.float32()) for name, values in figures.items()}}
    journal.append("layers", {"step": [step] * len(names), "parameter": pa.array(names).dictionary_encode(), **columns})


def finding(journal: Journal, step: int, text: str = "the loss rose", rule: str = "loss_spike") -> None:
    journal.append(
        "findings",
        {"step": [step], "rule": [rule], "parameter": [None], "value": [9.0], "threshold": [3.0], "text": [text]},
    )
