"""A table on disk: a folder of parquet parts, each complete from the moment it can be seen.

Parts are written under a name that starts with a dot, which readers skip, then synced and renamed. Their names hold
the first and the last step. Cutting and compacting never show a reader a row twice, nor a gap.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from tvlars_probe.errors import TraceError
from tvlars_probe.traces.footers import check_footer, remedy
from tvlars_probe.traces.schema import TABLES
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from tvlars_probe.traces.schema import Table

_GROUP_BY_PARAMETER = 1 << 14
_ROW_GROUP = 1 << 13
"""Rows of a merged part that are in memory at a time."""

_PART = re.compile(r"part-(\d{10,19})-(\d{10,19})(?:-\d+)?\.parquet")
_TEMPORARY = re.compile(rf"\.{_PART.pattern}\.\d+\.tmp")
_REPLACED = re.compile(r"\.(?:run\.json|step-\d+\.pt)\.\d+\.tmp")
_SCRATCH = re.compile(rf"\.(?:{'|'.join(TABLES)})-(?:split|compact)-\d+")


_CAN_EXCHANGE: dict[int, bool] = {}


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


def holes(spans: Iterable[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """The stretches of steps from ``first`` to ``last`` that none of the spans covers; a span's ends belong to it."""
    for start, end in sorted(spans):
        if first < start and first <= last:
            yield first, min(start - 1, last)
        first = max(first, end + 1)
    if first <= last:
        yield first, last


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut."""
    with suppress(OSError, AttributeError):  # some file systems, and Windows, can't open a folder
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write(stream)`` fill a temporary file beside ``path``, sync it, and rename it there.

    Raises:
        OSError: it can't be written (no space, no permission, ...); ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:  # no link that stands there is followed
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch's writer meets a refused write with an assertion of its own.
        cause = (error.__cause__ or error.__context__) if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        if cause.errno is not None:
            cause.filename = str(path)
        raise cause from None
    sync_folder(path.parent)


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left half done in a run: nobody else may be writing there.

    Only what bears a name that is made here goes, and no link is followed.
    """
    for home in (run, run / "checkpoints"):
        for file in [*home.iterdir()] if home.is_dir() and not home.is_symlink() else []:
            if _REPLACED.fullmatch(file.name):
                with suppress(OSError):
                    file.unlink()
    folder = run / "trace"
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in [*folder.iterdir()]:
        if path.is_symlink() or not path.is_dir():
            continue
        if _SCRATCH.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name in TABLES:
            for file in [*path.iterdir()]:
                if _TEMPORARY.fullmatch(file.name):
                    with suppress(OSError):
                        file.unlink()


def write_part(folder: Path, schema: Table, rows: pa.Table, *, by_parameter: bool = False) -> Path:
    """Write ``rows`` (not empty, in order of steps) as one more part of the table.

    With ``by_parameter`` they are put in order of parameters first and of steps within each, in row groups so small
    that one parameter's history is a fraction of the part; the footer says so.
    """
    import pyarrow.compute as pc

    first, last = pc.min(rows["step"]).as_py(), pc.max(rows["step"]).as_py()
    rows = rows.take(_order_by_parameter(rows)) if by_parameter else rows
    return _write(folder, schema, (first, last), rows.schema, [rows], by_parameter=by_parameter)


def _write(
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


def _order_by_parameter(rows: pa.Table) -> NDArray[np.int64]:
    import numpy as np

    steps, parameters = rows["step"].to_numpy(), _indices(rows["parameter"])
    if parameters.max() < 1 << 16 and (steps[1:] >= steps[:-1]).all():
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


def cut(folder: Path, step: int, aside: Path) -> int:
    """Move the parts from ``step`` on into ``aside``, the last one first, so that what stays is always a prefix.

    Returns:
        the number of parts moved.
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
    """Link into ``scratch`` what else stands in the table's folder: it isn't ours to lose."""
    known = {part.path.name for part in parts}
    for path in folder.iterdir():
        if path.name in known or _TEMPORARY.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, scratch / path.name, symlinks=True, copy_function=os.link)
        else:
            os.link(path, scratch / path.name, follow_symlinks=False)


def split(folder: Path, step: int) -> None:
    """Let a part end at ``step``: one that holds steps on both sides becomes two, in one step for readers.

    Raises:
        TraceError: a part is damaged, or the file system can't exchange two folders; nothing has been changed.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts = list_parts(folder)
    if not any(part.first_step < step <= part.last_step for part in parts):
        return
    scratch = folder.with_name(f".{folder.name}-split-{os.getpid()}")
    try:
        scratch.mkdir()
        for part in parts:
            if not part.first_step < step <= part.last_step:
                os.link(part.path, scratch / part.path.name)
                continue
            check_footer(part.path, folder.name)
            rows = pq.read_table(part.path)
            first, last = pc.min(rows["step"]).as_py(), pc.max(rows["step"]).as_py()
            if (first, last) != (part.first_step, part.last_step):
                what = f"{part.path} holds steps {first} to {last}, which is not what its name says"
                raise TraceError(f"{what}: {remedy(part.path)}")
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
        shutil.rmtree(scratch, ignore_errors=True)


def compact(
    folder: Path,
    schema: Table,
    boundaries: Sequence[int] = (),
    *,
    target_rows: int = 1 << 20,
    by_parameter: bool = False,
    run_id: str | None = None,
) -> bool:
    """Merge neighbouring small parts, where the file system can exchange two folders in one step.

    Readers see the old folder or the new one, never both or neither, whenever the process is killed.

    Args:
        folder: the table's parts.
        schema: the table.
        boundaries: steps (of kept checkpoints) that a part may not straddle.
        target_rows: size of a merged part; parts of half that size are left alone.
        by_parameter: write every part in order of parameters, so that one's history is read without the others'.
        run_id: of the run; a table that holds a part of another one, of a later version, or one that can't be read is
            left as it is, for a check to name.

    Returns:
        whether anything was changed.
    """
    import pyarrow as pa

    for leftover in folder.parent.glob(f".{folder.name}-compact-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    parts = list_parts(folder)
    scratch = folder.with_name(f".{folder.name}-compact-{os.getpid()}")
    try:
        counts = [check_footer(part.path, schema.name, run_id).num_rows for part in parts]
        groups = _groups(parts, counts, boundaries, target_rows)
        kept = [len(group) == 1 and (not by_parameter or is_by_parameter(group[0])) for group in groups]
        overlap = any(before.last_step >= part.first_step for before, part in itertools.pairwise(parts))
        if all(kept) or overlap or not can_exchange(folder.parent):
            return False
        scratch.mkdir()
        for group, as_it_is in zip(groups, kept, strict=True):
            if as_it_is:
                os.link(group[0].path, scratch / group[0].path.name)
            else:
                pieces, columns = _pieces(group), _common_schema(group)
                if by_parameter:
                    whole = pa.concat_tables(pieces).unify_dictionaries()
                    pieces = iter([whole.take(_order_by_parameter(whole))])
                steps = group[0].first_step, max(part.last_step for part in group)
                _write(scratch, schema, steps, columns, pieces, by_parameter=by_parameter)
        _carry_over(folder, scratch, parts)
        sync_folder(scratch)
        exchange(scratch, folder)
        sync_folder(folder.parent)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return False  # parts stay as small as they are; what is wrong with them, readers and checks name
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def _common_schema(group: Sequence[Part]) -> pa.Schema:
    """Every column of the parts: newer ones may have some that older ones lack."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.unify_schemas([pq.read_schema(part.path) for part in group])


def _pieces(group: Sequence[Part]) -> Iterator[pa.Table]:
    """The rows of the parts, some `_ROW_GROUP` at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, waiting, rows = _common_schema(group), list[pa.Table](), 0
    for part in group:
        with pq.ParquetFile(part.path) as file:
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

    joined = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    for field in columns:
        if field.name not in joined.column_names:
            joined = joined.append_column(field, pa.nulls(len(joined), field.type))
    return joined.select(columns.names).cast(columns)


def can_exchange(folder: Path) -> bool:
    """Whether two folders in ``folder`` can be exchanged in one step; found out once per file system and process."""
    device = folder.stat().st_dev
    if device not in _CAN_EXCHANGE:
        places = [folder / f".exchange-{side}-{os.getpid()}" for side in "ab"]
        try:
            for place in places:
                place.mkdir()
            exchange(*places)
            _CAN_EXCHANGE[device] = True
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                return False  # that may pass
            _CAN_EXCHANGE[device] = False
        finally:
            for place in places:
                with suppress(OSError):
                    place.rmdir()
    return _CAN_EXCHANGE[device]


def exchange(first: Path, second: Path) -> None:
    """Swap two folders' names in one step that no reader can see the middle of.

    Raises:
        OSError: the system or the file system can't.
    """
    if sys.platform not in ("linux", "darwin"):
        raise OSError("this platform can't exchange two folders in one step")
    libc = ctypes.CDLL(None, use_errno=True)
    here, there = os.fsencode(first), os.fsencode(second)
    at_cwd, swap = -100, 2  # AT_FDCWD, and RENAME_EXCHANGE or RENAME_SWAP
    try:
        if sys.platform == "linux":
            failed = libc.renameat2(at_cwd, here, at_cwd, there, swap)
        else:
            failed = libc.renamex_np(here, there, swap)
    except AttributeError:
        raise OSError(errno.ENOSYS, "the system's library can't exchange two folders", str(second)) from None
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))


def _groups(
    parts: Sequence[Part], counts: Sequence[int], boundaries: Sequence[int], target_rows: int
) -> list[list[Part]]:
    groups: list[list[Part]] = []
    filled = target_rows
    for part, rows in zip(parts, counts, strict=True):
        crossed = bool(groups) and any(groups[-1][-1].last_step < edge <= part.first_step for edge in boundaries)
        if crossed or filled + rows > target_rows or rows > target_rows // 2:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled = target_rows if rows > target_rows // 2 else filled + rows
    return groups
