"""Runs with rows of ``noise`` made by hand."""

from __future__ import annotations

import datetime
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.analyses.batches.noise_rows import estimates
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path


def with_noise(run: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a run in ``folder``, with what `add_noise` adds to it."""
    copy = folder / run.name
    shutil.copytree(run, copy)
    add_noise(copy, **settings)
    return copy


def add_noise(run: Path, *, noise: float = 600.0, steps: int = 40, tensors: bool = True) -> None:
    """Add signal and noise of steps to a run, of all tensors together and (unless told) of each."""
    manifest = Manifest.load(run)
    (phase, entries), *_ = manifest.parameters.items()
    names = ["", *(entry["name"] for entry in entries)] if tensors else [""]
    rng, writer = np.random.default_rng(0), TraceWriter(run / "trace", manifest.run_id)
    found = [estimates(rng, steps, noise=noise, batch=48, dimensions=30) for _ in names]
    signal, trace = (np.array([each[k] for each in found]).T for k in (0, 1))
    count = signal.size
    told = {
        "phase": phase, "source": "training", "unit": "samples", "pieces": 4, "piece_size": 12.0, "samples": 48,
    }  # fmt: skip
    writer.append("noise", {
        "step": np.repeat(np.arange(steps), len(names)),
        "scope": [name or "all" for name in names] * steps,
        "scope_kind": ["tensor" if name else "all" for name in names] * steps,
        "gradient_square": signal.reshape(-1), "noise_trace": trace.reshape(-1),
        **{name: [value] * count for name, value in told.items()},
    })  # fmt: skip
    writer.flush()


def measured(run: Path, step: int, *, noise: float = 10.0, name: str = "m", **further: Any) -> None:
    """Add a row of a probe to a run, as the measurement at a checkpoint does."""
    manifest = Manifest.load(run)
    row: dict[str, Any] = {
        "step": step, "phase": next(iter(manifest.parameters)), "measurement_id": name, "source": "probe",
        "created_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "scope": "all", "scope_kind": "all",
        "pieces": 100, "piece_size": 1.0, "unit": "samples", "samples": 100, "gradient_square": 2.0,
        "gradient_square_error": 0.1, "noise_trace": noise, "noise_trace_error": 0.1, "split": "train",
        "bn_mode": "eval", **further,
    }  # fmt: skip
    writer = TraceWriter(run, manifest.run_id)
    writer.append("noise", {key: [value] for key, value in row.items()})
    writer.flush()
