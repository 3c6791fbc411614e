"""A run as a row of a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.traces.summary import summary

if TYPE_CHECKING:
    from tvlars_probe.traces.reader import Trace

HEADINGS = {
    "run": "run", "status": "status", "steps": "steps", "best_test_acc1": "best test acc (%)", "optimizer": "optimizer",
    "lr": "peak lr", "batch_size": "batch", "schedule": "schedule", "data": "data", "model": "model", "seed": "seed",
}  # fmt: skip
"""Headings of the list; what no manifest tells has an empty cell."""


def row_of(trace: Trace) -> dict[str, Any]:
    """The run's row: what its manifest tells. Columns are those of `HEADINGS`, and more."""
    steps = [segment.get("last_step") for segment in trace.manifest.segments if isinstance(segment, dict)]
    done = next((step for step in reversed(steps) if isinstance(step, int)), None)
    return {**summary(trace.path, trace.manifest), "run": trace.name, "steps": None if done is None else done + 1}
