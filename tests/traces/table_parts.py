"""Small tables on disk, for tests of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, *spans: tuple[int, int]) -> Path:
    """A table ``steps`` of one part per span of steps."""
    for first, last in spans:
        writer = TraceWriter(folder, "r")
        writer.append(
            "steps", {"step": list(range(first, last + 1)), "loss": [float(i) for i in range(first, last + 1)]}
        )
        writer.flush()
    return folder / "steps"


def steps_in(folder: Path) -> list[int]:
    return [step for part in list_parts(folder) for step in pq.read_table(part.path)["step"].to_pylist()]


def write_layers(folder: Path, *spans: tuple[int, int]) -> Path:
    """A table ``layers`` of three parameters, their names not in order of the alphabet."""
    for first, last in spans:
        steps = [step for step in range(first, last + 1) for _ in range(3)]
        names = pa.array(["stem", "body", "head"] * (last + 1 - first)).dictionary_encode()
        writer = TraceWriter(folder, "r")
        writer.append("layers", {"step": steps, "parameter": names, "weight_norm": [float(i) for i in steps]})
        writer.flush()
    return folder / "layers"


def pairs_in(folder: Path) -> list[tuple[int, str]]:
    tables = [pq.read_table(part.path).to_pydict() for part in list_parts(folder)]
    return [pair for table in tables for pair in zip(table["step"], table["parameter"], strict=True)]
