"""Exporters that keep what they get, raise or hang; and rows for them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvlars_probe.exports.exporter import Alert, ExportedRun, StepScalars


class Kept:
    """Keeps everything."""

    def __init__(self) -> None:
        self.runs: list[ExportedRun] = []
        self.points: list[StepScalars] = []
        self.alerts: list[Alert] = []
        self.flushes = 0
        self.notes: list[str] = []
        self.ended: list[str] = []

    def begin(self, run: ExportedRun) -> None:
        self.runs.append(run)

    def scalars(self, point: StepScalars) -> None:
        self.points.append(point)

    def alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def flush(self) -> None:
        self.flushes += 1

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self, status: str) -> None:
        self.ended.append(status)

    @property
    def values(self) -> dict[tuple[int, str], float]:
        return {(point.step, name): value for point in self.points for name, value in point.values.items()}


class Raising(Kept):
    """Raises at the first scalar, or in the method named."""

    def __init__(self, where: str = "scalars", error: BaseException | None = None) -> None:
        super().__init__()

        def fail(*_: Any) -> None:
            raise error or ConnectionError("the tracker is away\nfor a while")

        setattr(self, where, fail)


class Hanging(Kept):
    """Waits at the first scalar until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go, self.reached = threading.Event(), threading.Event()

    def scalars(self, point: StepScalars) -> None:
        self.reached.set()
        self.let_go.wait(60)
        super().scalars(point)


def rows(table: str, columns: Mapping[str, Any]) -> pa.Table:
    """Rows of a table; columns that aren't given are null."""
    schema, length = schema_of(table).arrow_schema("r"), len(columns["step"])
    given = {"run": ["r"] * length, **columns}
    return pa.Table.from_arrays(
        [
            pa.array(given[field.name], field.type) if field.name in given else pa.nulls(length, field.type)
            for field in schema
        ],
        schema=schema,
    )


def layers(steps: Sequence[int], tensors: int, **figures: Any) -> pa.Table:
    """Rows of ``layers``: every tensor in every step. A figure is a number or a matrix of steps and tensors."""
    parameters = np.char.add("layer", np.arange(tensors).astype(str))
    shape = (len(steps), tensors)
    columns: dict[str, Any] = {"step": np.repeat(steps, tensors), "parameter": np.tile(parameters, len(steps))}
    for name, value in {
        "trust_ratio": 0.5,
        "grad_norm": 2.0,
        "weight_norm": 4.0,
        "update_norm": 1.0,
        **figures,
    }.items():
        if value is not None:
            columns[name] = np.broadcast_to(np.asarray(value, np.float32), shape).ravel()
    columns["parameter"] = pa.array(columns["parameter"]).dictionary_encode()
    schema = schema_of("layers").arrow_schema("r")
    whole = {"run": pa.array(["r"] * len(columns["step"])).dictionary_encode(), **columns}
    return pa.Table.from_arrays(
        [
            pa.array(whole[f.name], f.type) if isinstance(whole.get(f.name), np.ndarray) else whole[f.name].cast(f.type)
            if f.name in whole
            else pa.nulls(len(columns["step"]), f.type)
            for f in schema
        ],
        schema=schema,
    )  # fmt: skip


def steps(first: int, count: int, **columns: Any) -> pa.Table:
    """Rows of ``steps``, with a loss."""
    numbers = np.arange(first, first + count)
    return rows("steps", {"step": numbers, "loss": 1.0 / (1 + numbers), **columns})
