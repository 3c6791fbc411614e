"""Cuts, splits and merges parts. Readers see a table's folder as it was or as it is, whenever the process is killed.

To split or merge, a new folder is made beside the old one, and the two change places in one step.
"""

from __future__ import annotations

import itertools
import os
import shutil
from typing import TYPE_CHECKING

from tvlars_probe.admission.parquet import open_arrow
from tvlars_probe.errors import TraceError
from tvlars_probe.traces.files import Exchange, exchange, sync_folder
from tvlars_probe.traces.footers import check_footer, read_footer, remedy
from tvlars_probe.traces.parts import (
    TEMPORARY_PART,
    is_by_parameter,
    list_parts,
    order_by_parameter,
    write_part,
    write_pieces,
)
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tvlars_probe.traces.parts import Part
    from tvlars_probe.traces.table_form import Table

_ROW_GROUP = 1 << 13
"""Rows after which a piece of a merged part is written."""


def cut(folder: Path, step: int, aside: Path) -> int:
    """Move the rows from ``step`` on into the folder ``aside``.

    A part that holds steps on both sides is split first. Then whole parts are moved, the last one first: what stays is
    a prefix of the table at every moment.

    Returns:
        the number of parts moved.

    Raises:
        TraceError: as for `split`.
        OSError: a part can't be moved.
    """
    split(folder, step)
    late = [part for part in list_parts(folder) if part.last_step >= step]
    for part in reversed(late):
        aside.mkdir(parents=True, exist_ok=True)
        part.path.replace(aside / part.path.name)
    if late:
        sync_folder(folder)
    return len(late)


def _carry_over(folder: Path, scratch: Path, parts: Sequence[Part]) -> None:
    """Hard-link into ``scratch`` everything in the table's folder that is no part: it may be the user's."""
    known = {part.path.name for part in parts}
    for path in folder.iterdir():
        if path.name in known or TEMPORARY_PART.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            # A folder can't be hard-linked: its files are.
            shutil.copytree(path, scratch / path.name, symlinks=True, copy_function=os.link)
        else:
            os.link(path, scratch / path.name, follow_symlinks=False)


def split(folder: Path, step: int) -> None:
    """Split each part that straddles ``step`` in two: one of the steps before it, one of ``step`` and those after.

    Readers see the change in one step.

    Raises:
        TraceError: a part is damaged, or the file system can't exchange two folders; nothing has been changed.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = list_parts(folder)
    if not any(part.first_step < step <= part.last_step for part in parts):
        return
    # Beside the folder, hence on its file system. Readers skip the dot; `leftovers` knows the form.
    scratch = folder.with_name(f".{folder.name}-split-{os.getpid()}")
    try:
        scratch.mkdir()
        for part in parts:
            if not part.first_step < step <= part.last_step:
                os.link(part.path, scratch / part.path.name)
                continue
            check_footer(part.path, folder.name)
            rows = _read(part)
            first, last = pc.min(rows["step"]).as_py(), pc.max(rows["step"]).as_py()
            if (first, last) != (part.first_step, part.last_step):
                what = f"{part.path} holds steps {first} to {last}, which is not what its name says"
                raise TraceError(f"{what}: {remedy(part.path)}")
            # Halves of a part in order of parameters keep that order, but no footer notes it: the next `compact` by
            # parameter sorts them anew.
            schema = schema_of(folder.name)
            for side in (pc.field("step") < step, pc.field("step") >= step):
                write_part(scratch, schema, rows.filter(side))
        _carry_over(folder, scratch, parts)
        sync_folder(scratch)
        exchange(scratch, folder)
        sync_folder(folder.parent)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"{folder} can't be cut at step {step}: {reason}; nothing is lost") from None
    finally:
        # After the exchange this is the old folder.
        shutil.rmtree(scratch, ignore_errors=True)


def _read(part: Part) -> pa.Table:
    import pyarrow.parquet as pq

    with open_arrow(part.path) as source:
        return pq.read_table(source)


def compact(
    folder: Path,
    schema: Table,
    boundaries: Sequence[int] = (),
    *,
    target_rows: int = 1 << 20,
    by_parameter: bool = False,
    run_id: str | None = None,
    places: Exchange | None = None,
) -> bool:
    """Merge small parts that are neighbours, if the file system can exchange two folders in one step.

    Readers see the old folder or the new one, never both or neither, whenever the process is killed.

    Args:
        folder: the table's folder.
        schema: the table.
        boundaries: steps of the checkpoints kept; no merged part straddles one.
        target_rows: the most rows of a merged part. A part of more than half as many isn't merged.
        by_parameter: write every part in order of parameters, so that one parameter's history is read alone.
        run_id: the run's run_id; None if unknown. A table with a part of another run, of a later version, or that can't
            be read is left as it is: a check names what is wrong.
        places: tells whether folders can change places beside the table's folder; by default that is tried out.

    Returns:
        whether anything was changed.
    """
    import pyarrow as pa

    # A training run has one writer: whatever scratch is there, a killed process left it.
    for leftover in folder.parent.glob(f".{folder.name}-compact-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    parts = list_parts(folder)
    scratch = folder.with_name(f".{folder.name}-compact-{os.getpid()}")
    try:
        counts = [check_footer(part.path, schema.name, run_id).num_rows for part in parts]
        groups = _groups(parts, counts, boundaries, target_rows)
        kept = [len(group) == 1 and (not by_parameter or is_by_parameter(group[0])) for group in groups]
        # Steps that two parts hold would stand twice in the merged one, where a check can set neither aside. Parts come
        # in order of their first steps: if any two overlap, two neighbours do.
        overlap = any(before.last_step >= part.first_step for before, part in itertools.pairwise(parts))
        if all(kept) or overlap or not (places or Exchange(folder.parent)).is_possible:
            return False
        scratch.mkdir()
        for group, as_it_is in zip(groups, kept, strict=True):
            if as_it_is:
                os.link(group[0].path, scratch / group[0].path.name)
            else:
                columns = _common_schema(group, schema)
                pieces = _pieces(group, columns)
                if by_parameter:
                    # Sorting needs the whole part in memory.
                    whole = pa.concat_tables(pieces).unify_dictionaries()
                    pieces = iter([whole.take(order_by_parameter(whole))])
                steps = group[0].first_step, max(part.last_step for part in group)
                write_pieces(scratch, schema, steps, columns, pieces, by_parameter=by_parameter)
        _carry_over(folder, scratch, parts)
        sync_folder(scratch)
        exchange(scratch, folder)
        sync_folder(folder.parent)
    except (OSError, OverflowError, TraceError, pa.ArrowException):
        return False  # parts stay as small as they are; what is wrong with them, readers and checks name
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def _common_schema(group: Sequence[Part], table: Table) -> pa.Schema:
    """The columns that any of the parts has: newer parts may have some that older ones lack.

    Raises:
        TraceError: the parts lack a required column, or it has another type.
    """
    import pyarrow as pa

    # The metadata of the first schema are kept: the merged part's footer names version, table and run.
    there = [read_footer(part.path).schema.to_arrow_schema() for part in group]
    columns, expected = pa.unify_schemas(there), table.arrow_schema()
    for name in table.required:
        if name not in columns.names or columns.field(name).type != expected.field(name).type:
            raise TraceError(f"{group[0].path} has no {name} as the table {table.name} has it")
    return columns


def _pieces(group: Sequence[Part], columns: pa.Schema) -> Iterator[pa.Table]:
    """The rows of the parts in pieces, each complete once it has `_ROW_GROUP` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    waiting, rows = list[pa.Table](), 0
    for part in group:
        with open_arrow(part.path) as source, pq.ParquetFile(source) as file:
            for index in range(file.num_row_groups):
                waiting.append(file.read_row_group(index))
                rows += len(waiting[-1])
                if rows >= _ROW_GROUP:
                    yield _joined(waiting, columns)
                    waiting, rows = [], 0
    if waiting:
        yield _joined(waiting, columns)


def _joined(tables: Sequence[pa.Table], columns: pa.Schema) -> pa.Table:
    import pyarrow as pa

    # Nulls stand in for columns that some of these tables lack; below, for those that only other pieces have.
    joined = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    for field in columns:
        if field.name not in joined.column_names:
            joined = joined.append_column(field, pa.nulls(len(joined), field.type))
    return joined.select(columns.names).cast(columns)


def _groups(
    parts: Sequence[Part], counts: Sequence[int], boundaries: Sequence[int], target_rows: int
) -> list[list[Part]]:
    """The parts, in order, in groups to be merged; see `compact`."""
    groups: list[list[Part]] = []
    filled = 0  # rows of the last group; a large part fills its own, which then takes no further one
    for part, rows in zip(parts, counts, strict=True):
        crossed = bool(groups) and any(groups[-1][-1].last_step < edge <= part.first_step for edge in boundaries)
        if not groups or crossed or filled + rows > target_rows or rows > target_rows // 2:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled = target_rows if rows > target_rows // 2 else filled + rows
    return groups
