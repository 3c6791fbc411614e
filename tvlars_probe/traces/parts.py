"""A table on disk: a folder of parquet parts, each complete from the moment it can be seen.

A part is written beside the table's folder, for there are readers that take every file of a folder, hidden ones too. It
is then synced and moved in, under a name that holds its first and its last step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from tvlars_probe.admission.parquet import open_arrow
from tvlars_probe.traces.files import replace_file
from tvlars_probe.traces.footers import describe, read_footer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

    from tvlars_probe.traces.table_form import Table

_GROUP_BY_PARAMETER = 1 << 14
"""Rows of a row group in a part that is in order of parameters."""

# At least ten digits, so that a listing by name is in order of steps. The last number tells apart parts of equal steps.
_PART = re.compile(r"part-(\d{10,19})-(\d{10,19})(?:-\d+)?\.parquet")
TEMPORARY_PART = re.compile(rf"\.{_PART.pattern}\.\d+\.tmp")
"""Name of a part that is being written, as `tvlars_probe.traces.files.replace_file` makes it.

It lies beside the table's folder; earlier versions wrote it inside.
"""


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One parquet file and the steps that its name claims."""

    first_step: int
    last_step: int
    path: Path


def list_parts(folder: Path) -> list[Part]:
    """The complete parts of a table, in order of their steps. Files with other names are passed over."""
    if not folder.is_dir():
        return []
    return sorted(part for path in folder.iterdir() if (part := part_of(path)) is not None)


def part_of(path: Path) -> Part | None:
    """The part that a file's name says it is; None for any other name."""
    match = _PART.fullmatch(path.name)
    # Nineteen digits can exceed int64, the type of a step.
    return Part(int(match[1]), int(match[2]), path) if match and int(match[2]) < 1 << 63 else None


def read_part(
    path: Path, footer: pq.FileMetaData, columns: Sequence[str], schema: pa.Schema, *, use_threads: bool
) -> pa.Table:
    """These columns of a part, whose rows are still to be checked; a column that an older part lacks is null.

    Args:
        path: the part.
        footer: its footer, checked.
        columns: the columns wanted; one of them at least is in the part.
        schema: of the table.
        use_threads: whether columns are decoded side by side.

    Raises:
        OSError: it can't be opened, or is damaged.
        pyarrow.ArrowException: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # No dataset: to import that imports pandas, which takes longer than to read most parts.
    there = {*footer.schema.to_arrow_schema().names}
    with open_arrow(path) as source, pq.ParquetFile(source, metadata=footer) as file:
        rows = file.read(columns=[name for name in columns if name in there], use_threads=use_threads)
    for name in columns:
        if name not in there:
            field = schema.field(name)
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows.select(list(columns))


def write_part(folder: Path, schema: Table, rows: pa.Table, *, by_parameter: bool = False) -> Path:
    """Write ``rows`` as one more part of the table.

    Args:
        folder: the table's folder.
        schema: the table.
        rows: at least one.
        by_parameter: put the rows in order of parameters, and of steps within each. Row groups are then so small that
            one parameter's history is a fraction of the part. The footer notes the order.

    Returns:
        the part.
    """
    import pyarrow.compute as pc

    # Not the first and the last row's: halves of a split part may be in order of parameters.
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
    """Write pieces of a table, in the order given, as one part. Only one of them is in memory at a time.

    Args:
        folder: the table's folder.
        schema: the table.
        steps: the first and the last step of all pieces.
        columns: the Arrow schema of each piece.
        pieces: the rows.
        by_parameter: the rows are in order of parameters; the footer notes it.

    Returns:
        the part.
    """
    import pyarrow.parquet as pq

    folder.parent.mkdir(parents=True, exist_ok=True)
    stem, copy = f"part-{steps[0]:010d}-{steps[1]:010d}", 1
    path = folder / f"{stem}.parquet"
    # The same steps may be recorded more than once, by measurements after training: no part replaces another.
    while path.exists():
        copy += 1
        path = folder / f"{stem}-{copy}.parquet"
    # zstd packs floats tighter with their bytes grouped by significance, and steps and times stored as differences.
    encodings = dict.fromkeys(schema.of_type("float32", "float64"), "BYTE_STREAM_SPLIT")
    encodings |= dict.fromkeys(schema.of_type("int64", "time"), "DELTA_BINARY_PACKED")
    names = columns.names
    # This sorts nothing: it notes the order for `is_by_parameter`. Parameters follow the model, not the alphabet.
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

    # The table's folder is made with its first part: readers of folders refuse an empty one.
    replace_file(path, fill, made_in=folder.parent)
    return path


def order_by_parameter(rows: pa.Table) -> NDArray[np.int64]:
    """The indices that put rows in order of parameters, and of steps within each parameter."""
    import numpy as np

    steps, parameters = rows["step"].to_numpy(), _indices(rows["parameter"])
    # Where steps ascend already, a stable sort by parameter keeps them so. NumPy sorts 16-bit integers by radix.
    if len(parameters) and parameters.max() < 1 << 16 and (steps[1:] >= steps[:-1]).all():
        return np.argsort(parameters.astype(np.uint16), kind="stable")  # in a fraction of the time
    return np.lexsort((steps, parameters))


def _indices(names: pa.ChunkedArray[Any]) -> NDArray[np.int32]:
    """The dictionary indices of a column of names. They follow the model's order, not the alphabet's."""
    import numpy as np

    # Chunks have dictionaries of their own: only one dictionary for all makes their indices comparable.
    chunks: list[Any] = names.unify_dictionaries().chunks
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks])


def is_by_parameter(part: Part) -> bool:
    """Whether a part's footer says that its rows are in order of parameters."""
    metadata = read_footer(part.path)
    return metadata.num_row_groups > 0 and bool(metadata.row_group(0).sorting_columns)


def run_ids(trace: Path) -> list[str]:
    """The run_id of every part below a run's ``trace``, from its footer. Parts that can't be read are left out."""
    found: list[str] = []
    # A hidden folder is scratch of a merge or a split: its rows stand in the table's folder too.
    for part in (part for folder in sorted(trace.glob("[!.]*")) for part in list_parts(folder)):
        try:
            about = describe(read_footer(part.path)) or {}
        except (OSError, ValueError):
            continue
        if isinstance(run_id := about.get("run_id"), str):
            found.append(run_id)
    return found
