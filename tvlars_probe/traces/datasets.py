"""Reads the parts of a table as one Arrow dataset: chooses rows, and names the part that is damaged."""

from __future__ import annotations

import functools
import operator
import os
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.parquet import open_arrow
from tvlars_probe.errors import TraceError
from tvlars_probe.traces.footers import first_line, refuse_unreadable, remedy
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    from numpy.typing import NDArray

BATCH_ROWS = 1 << 17
"""Rows that are decoded and handed on at a time."""


def condition_of(
    *,
    where: pc.Expression | None = None,
    steps: tuple[int, int] | int | None = None,
    parameters: Sequence[str] | str | None = None,
) -> pc.Expression | None:
    """All of these conditions, joined by and; None if none is given."""
    import pyarrow.compute as pc

    conditions = [] if where is None else [where]
    if steps is not None:
        first, last = steps if isinstance(steps, tuple | list) else (steps, steps)
        conditions += [pc.field("step") >= first, pc.field("step") <= last]
    if parameters is not None:
        conditions.append(pc.field("parameter").isin(names_of(parameters)))
    return functools.reduce(operator.and_, conditions) if conditions else None


def names_of(names: Sequence[str] | str) -> list[str]:
    """Names as a list, also where one alone is given."""
    return [names] if isinstance(names, str) else [*names]


def dataset_of(paths: Sequence[Path], schema: pa.Schema) -> ds.Dataset:
    """The parts as one dataset with that schema. Its fragments stand in the order of the paths.

    Raises:
        OSError: a part can't be opened.
    """
    import pyarrow.dataset as ds

    try:
        for path in paths:
            os.fspath(path).encode()
    except UnicodeEncodeError:
        # Arrow takes paths in UTF-8 alone: these are opened for it.
        form = ds.ParquetFileFormat()
        opened: list[Any] = [open_arrow(path) for path in paths]
        return ds.FileSystemDataset([form.make_fragment(source) for source in opened], schema, form)
    return ds.dataset([*map(str, paths)], schema=schema, format="parquet")


def sound(table: str, batches: Iterator[pa.RecordBatch], paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The batches, each checked by `refuse_damaged` before it is handed on."""
    for batch in batches:
        refuse_damaged(table, batch, paths)
        yield batch


def refuse_damaged(table: str, rows: pa.Table | pa.RecordBatch, paths: Sequence[Path]) -> None:
    """Refuse rows of which a required column is null, or a name is no UTF-8.

    Args:
        table: name of the table.
        rows: some rows of it.
        paths: of its parts.

    Raises:
        TraceError: a required column is null; the message names the part.
        pyarrow.ArrowException: a name is no UTF-8, which Arrow finds only when it is asked.
    """
    rows.validate(full=True)
    # Arrow doesn't hold what it reads to the schema: a column that is not nullable may come with nulls.
    for name in schema_of(table).required:
        if name not in rows.schema.names or not rows.column(name).null_count:
            continue
        schema = schema_of(table).arrow_schema()
        for path in paths:
            if dataset_of([path], schema).to_table(columns=[name]).column(name).null_count:
                raise TraceError(
                    f"a part of the table {table} is damaged: {path} (rows without {name}); {remedy(path)}"
                )


def row_groups_of(dataset: Any, parameters: Sequence[str]) -> ds.Dataset:
    """The part of a dataset whose row groups can hold one of ``parameters``."""
    import pyarrow.dataset as ds

    # Arrow's own filter leaves the statistics of dictionary columns unused: without this every row group is read.
    fragments = []
    for fragment in dataset.get_fragments():
        metadata = fragment.metadata
        column = metadata.schema.names.index("parameter")
        spans = [metadata.row_group(g).column(column).statistics for g in range(metadata.num_row_groups)]
        groups = [g for g, span in enumerate(spans) if _may_hold(span, parameters)]
        if groups:
            fragments.append(fragment.subset(row_group_ids=groups))
    return ds.FileSystemDataset(fragments, schema=dataset.schema, format=dataset.format)


def _may_hold(span: Any, parameters: Sequence[str]) -> bool:
    if span is None or not span.has_min_max:
        return True
    try:
        return any(span.min <= name <= span.max for name in parameters)
    except UnicodeDecodeError:  # the rows, which are damaged too, will say so
        return True


def by_step(rows: pa.Table) -> pa.Table:
    """The rows in order of steps; in the parts of a finished run they are in order of parameters."""
    import numpy as np

    from tvlars_probe.traces.arrays import numbers, rows_at

    steps, _ = numbers(rows["step"])
    if (steps[1:] >= steps[:-1]).all():
        return rows
    return rows_at(np.argsort(steps, kind="stable"), rows)  # stable: within a step the parameters keep their order


def distinct(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each step once, ascending."""
    import numpy as np

    # np.unique puts integers into a hash table: of sixteen million steps that took half a minute and a GiB.
    ordered = steps if (steps[1:] >= steps[:-1]).all() else np.sort(steps)
    found: NDArray[np.int64] = ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]
    return found


def unfound(table: str, paths: Sequence[Path]) -> str:
    """The message about a part that is listed and yet can't be opened: a link that leads nowhere."""
    path = next((path for path in paths if not path.exists()), paths[0])
    return f"a part of the table {table} leads to a file that isn't there: {path}; {remedy(path)}"


def damage(run: Path, table: str, paths: Sequence[Path], error: BaseException) -> str:
    """The message about the part that is damaged.

    Args:
        run: the run directory.
        table: name of the table.
        paths: of its parts.
        error: what reading them together raised.

    Raises:
        FileNotFoundError: a part is gone.
        UnreadableError: the system refuses to read a part.
    """
    import pyarrow as pa

    # An error of Arrow need not name the file: the parts are read one by one.
    schema = schema_of(table).arrow_schema()
    for path in paths:
        try:
            for batch in dataset_of([path], schema).to_batches(batch_size=BATCH_ROWS, use_threads=False):
                batch.validate(full=True)
        except (pa.ArrowException, OSError, OverflowError) as reason:
            refuse_unreadable(path, reason)
            return f"a part of the table {table} is damaged: {path} ({first_line(reason)}); {remedy(path)}"
    return f"a part of the table {table} of {run} is damaged: {first_line(error)}"


def no_rows(table: str, columns: Sequence[str] | None) -> pa.Table:
    """The table without rows, with the columns given or all."""
    import pyarrow as pa

    schema = schema_of(table)
    # Not `Schema.empty_table`, which imports pandas.
    return pa.Table.from_batches([], schema.arrow_schema()).select(list(columns or schema.names))
