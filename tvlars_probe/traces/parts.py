"""A table on disk: a folder of parquet parts, each complete from the moment it can be seen.

Parts are written under a name that starts with a dot, which readers skip, then synced and renamed. Their names hold
the first and the last step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from tvlars_probe.traces.files import replace_file
from tvlars_probe.traces.footers import describe, read_footer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from tvlars_probe.traces.schema import Table

_GROUP_BY_PARAMETER = 1 << 14

_PART = re.compile(r"part-(\d{10,19})-(\d{10,19})(?:-\d+)?\.parquet")
TEMPORARY_PART = re.compile(rf"\.{_PART.pattern}\.\d+\.tmp")
"""Name of a part that is being written."""


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One parquet file and the steps that its name claims."""

    first_step: int
    last_step: int
    path: Path


def list_parts(folder: Path) -> list[Part]:
    """The complete parts of a table in order of their steps; files of other names are none."""
    if not folder.is_dir():
        return []
    matches = ((path, _PART.fullmatch(path.name)) for path in folder.iterdir())
    return sorted(Part(int(m[1]), int(m[2]), path) for path, m in matches if m and int(m[2]) < 1 << 63)


def write_part(folder: Path, schema: Table, rows: pa.Table, *, by_parameter: bool = False) -> Path:
    """Write ``rows`` (not empty, in order of steps) as one more part of the table.

    With ``by_parameter`` they are put in order of parameters first and of steps within each, in row groups so small
    that one parameter's history is a fraction of the part; the footer says so.
    """
    import pyarrow.compute as pc

    first, last = pc.min(rows["step"]).as_py(), pc.max(rows["step"]).as_py()
    rows = rows.take(order_by_parameter(rows)) if by_parameter else rows
    return write_pieces(folder, schema, (first, last), rows.schema, [rows], by_parameter=by_parameter)


def write_pieces(
    folder: Path,
    schema: Table,
    steps: tuple[int, int],
    columns: pa.Schema,
    pieces: Iterable[pa.Table],
    *,
    by_parameter: bool = False,
) -> Path:
    """Write the pieces, in order, as one part; only one of them is in memory at a time."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    stem, copy = f"part-{steps[0]:010d}-{steps[1]:010d}", 1
    path = folder / f"{stem}.parquet"
    while path.exists():
        copy += 1
        path = folder / f"{stem}-{copy}.parquet"
    encodings = dict.fromkeys(schema.of_type("float32", "float64"), "BYTE_STREAM_SPLIT")
    encodings |= dict.fromkeys(schema.of_type("int64", "time"), "DELTA_BINARY_PACKED")
    names = columns.names
    sorting = [pq.SortingColumn(names.index(name)) for name in ("parameter", "step")] if by_parameter else None

    def fill(stream: IO[bytes]) -> None:
        with pq.ParquetWriter(
            stream,
            columns,
            compression="zstd",
            use_dictionary=schema.of_type("name"),  # type: ignore[arg-type]
            column_encoding=encodings,
            sorting_columns=sorting,
        ) as writer:
            for piece in pieces:
                writer.write_table(piece, row_group_size=_GROUP_BY_PARAMETER if by_parameter else None)

    replace_file(path, fill)
    return path


def order_by_parameter(rows: pa.Table) -> NDArray[np.int64]:
    """Where the rows go, in order of parameters first and of steps within each."""
    import numpy as np

    steps, parameters = rows["step"].to_numpy(), _indices(rows["parameter"])
    if len(parameters) and parameters.max() < 1 << 16 and (steps[1:] >= steps[:-1]).all():
        return np.argsort(parameters.astype(np.uint16), kind="stable")  # by radix, in a fraction of the time
    return np.lexsort((steps, parameters))


def _indices(names: pa.ChunkedArray[Any]) -> NDArray[np.int32]:
    """The dictionary's indices of a column of names: they follow the model's order, not the alphabet's."""
    import numpy as np

    chunks: list[Any] = names.unify_dictionaries().chunks
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks])


def is_by_parameter(part: Part) -> bool:
    """Whether a part's rows are in order of parameters."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(part.path)
    return metadata.num_row_groups > 0 and bool(metadata.row_group(0).sorting_columns)


def run_ids(trace: Path) -> list[str]:
    """The run of each part below a run's ``trace``, as its footer tells it; of parts that can be read."""
    found: list[str] = []
    for part in (part for folder in sorted(trace.glob("[!.]*")) for part in list_parts(folder)):
        try:
            about = describe(read_footer(part.path)) or {}
        except (OSError, ValueError):
            continue
        if isinstance(run_id := about.get("run_id"), str):
            found.append(run_id)
    return found
