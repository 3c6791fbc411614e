"""Runs made for the board's tests: small, in any state, with any names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import RunDirectory
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'\u202egnp\x1b[2J"


class TrainedRun:
    """A run that trains in this process: it is held, and grows by `train`.

    Args:
        path: the run directory.
        total: steps of the whole run.
        names: of its tensors.
        run_id: its run_id.
        **manifest: further fields of its manifest.
    """

    def __init__(
        self, path: Path, *, total: int = 100, names: tuple[str, ...] = ("w", "b"), run_id: str = "r.0", **manifest: Any
    ) -> None:
        self.path, self.names = path, names
        self.directory = RunDirectory.create(path)
        group = {"optimizer": "LARS", "lr": 0.5, "eta": 0.001, "weight_decay": 0.0, "parameters": len(names)}
        group["momentum"] = {"form": "heavy-ball", "beta": 0.9}
        told = {"groups": [group], "peak_lr": 0.5, "batch_size": 8, "total_steps": total, "steps_per_epoch": 10}
        entries = [
            {"name": name, "layer": name, "kind": "linear", "shape": [3, 3], "numel": 9, "optimizer": 0, "group": 0,
             "adapted": True, "decayed": True}
            for name in names
        ]  # fmt: skip
        self.manifest = Manifest(run_id=run_id, parameters={"train": entries}, **told | manifest)
        self.manifest.save(path)
        self._writer = TraceWriter(path / "trace", run_id)
        self._step = 0

    def train(self, steps: int, *, finding: str | None = None) -> TrainedRun:
        """Record so many steps more, and a finding with that text."""
        rng, tensors = np.random.default_rng(self._step), len(self.names)
        own = np.arange(self._step, self._step + steps)
        times = pa.array((own * 100_000).tolist(), pa.int64()).cast(pa.timestamp("us", "UTC"))
        phase = pa.array(["train"] * steps).dictionary_encode()
        told = {"loss": 2.0 / (own + 1.0), "lr": np.full(steps, 0.5), "grad_norm": np.ones(steps), "phase": phase}
        self._writer.append("steps", {"step": own, "time": times, **told})
        figures = rng.lognormal(0, 0.3, (5, steps * tensors)).astype(np.float32)
        columns = ("weight_norm", "grad_norm", "update_norm", "trust_ratio", "direction_norm")
        code = np.tile(np.arange(tensors, dtype=np.int32), steps)
        parameter = pa.DictionaryArray.from_arrays(code, pa.array([*self.names]))
        rows = {
            "step": np.repeat(own, tensors),
            "parameter": parameter,
            "lr": np.full(steps * tensors, 0.5, np.float32),
        }
        self._writer.append("layers", rows | dict(zip(columns, figures, strict=True)))
        self._step += steps
        if finding is not None:
            row = {"rule": ["loss_spike"], "parameter": [self.names[0]], "value": [9.0], "threshold": [2.0]}
            self._writer.append("findings", {"step": [self._step - 1], "text": [finding], **row})
        self._writer.flush()
        return self

    def end(self, status: str | None = "completed") -> Path:
        """Let go of the run; with None as if its trainer had been killed."""
        if status is not None:
            self.manifest.status = status
            self.manifest.save(self.path)
        self.directory.release()
        return self.path


def damage(path: Path) -> Path:
    """A run whose manifest can't be read."""
    path.mkdir(parents=True)
    (path / "run.json").write_text("{")
    return path


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a folder."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}
