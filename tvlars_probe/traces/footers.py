"""What a parquet part says of itself, checked before any of its rows is read.

A part from a stranger may be cut short, belong to another table, or cost more than a part can
(`tvlars_probe.admission.parquet`).
"""

from __future__ import annotations

import functools
import shlex
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission import limits, parquet
from tvlars_probe.admission.texts import parse_json
from tvlars_probe.errors import LaterVersionError, RefusedFileError, TraceError, UnreadableError
from tvlars_probe.traces.plain_types import shown
from tvlars_probe.traces.schema import TABLES
from tvlars_probe.traces.table_form import SCHEMA_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

_COPIES = 4
"""How often each row is in memory at once while rows are made into a frame."""


def read_footer(path: Path) -> pq.FileMetaData:
    """Read the footer of a part, and nothing else of it.

    Raises:
        FileNotFoundError: there is no such file (a part may be merged into another meanwhile).
        UnreadableError: the system refuses to read it.
        TraceError: it is no parquet file, or claims more than a part can hold.
    """
    import pyarrow as pa

    try:
        return parquet.read_footer(path)
    except FileNotFoundError:
        raise
    except RefusedFileError as error:
        raise TraceError(f"{error}; {remedy(path)}") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        refuse_unreadable(path, error)
        reason = "it is empty" if not path.stat().st_size else first_line(error)
        raise TraceError(f"{path} is damaged ({reason}): {remedy(path)}") from None


def rows_in_memory(row_bytes: int) -> int:
    """The number of rows that this machine's memory holds while they are made into a frame.

    Args:
        row_bytes: bytes of one row.
    """
    return limits.memory() // (_COPIES * row_bytes)


def check_footer(path: Path, table: str, run_id: str | None = None) -> pq.FileMetaData:
    """Read the footer of a part, and check that it belongs to ``table`` (and to the run ``run_id``, if that is given).

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the system refuses to read it.
        LaterVersionError: it has a later schema version.
        TraceError: it is damaged, or belongs to another table or run.
    """
    footer = read_footer(path)
    about = describe(footer)
    if about is None or about.get("table") != table:
        what = "was not written by tvlars-probe" if about is None else f"belongs to the table {about.get('table')}"
        raise TraceError(f"{path} is no part of the table {table}: it {what}; {remedy(path)}")
    version = about.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise LaterVersionError(
            f"{path} has schema version {shown(version)}; this tvlars-probe reads up to {SCHEMA_VERSION}: upgrade it"
        )
    # A part whose footer names no run may belong to any.
    other = about.get("run_id")
    if run_id is not None and other is not None and other != run_id:
        raise TraceError(f"{path} belongs to another run, {other}: {remedy(path)}")
    _refuse_other_types(path, footer, table)
    return footer


def _refuse_other_types(path: Path, footer: pq.FileMetaData, table: str) -> None:
    """Refuse a part whose columns have other types than the table's.

    A name that is stored as a string, and not in a dictionary, would be written out for each of its rows.

    Raises:
        TraceError: a column has another type, or one that no column has.
    """
    import pyarrow as pa

    try:
        columns = footer.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TraceError(f"{path} is damaged ({first_line(error)}): {remedy(path)}") from None
    ours, known = _types(table)
    for column in columns:
        # A later version's column, which nobody asks for, has a type of ours, too.
        if column.type not in ours.get(column.name, known):
            raise TraceError(
                f"{path} is no part of the table {table}: its column {shown(column.name)} is of type "
                f"{shown(str(column.type))}; {remedy(path)}"
            )


@functools.cache
def _types(table: str) -> tuple[dict[str, set[pa.DataType]], set[pa.DataType]]:
    """The type of each of a table's columns, as a set of one, and those of all tables' columns."""
    types = {name: {field.name: {field.type} for field in TABLES[name].arrow_schema()} for name in TABLES}
    return types.get(table, {}), {kind for each in types.values() for kinds in each.values() for kind in kinds}


def describe(footer: pq.FileMetaData) -> dict[str, Any] | None:
    """What the writer noted in a footer: schema_version, table, run_id. None if another program wrote the part."""
    noted = (footer.metadata or {}).get(b"tvlars_probe", b"")
    if len(noted) > limits.NOTE_BYTES:
        return None
    try:
        about = parse_json(noted, "a footer")
    except ValueError:
        return None
    return about if isinstance(about, dict) else None


def refuse_unreadable(path: Path, error: BaseException) -> None:
    """Raise if ``error`` is a refusal of the system (permission, disk, too many open files) and not damage.

    Arrow's errors carry the system's error number for a refusal, and none for damage.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the system refuses.
    """
    if isinstance(error, FileNotFoundError):
        raise error
    # A folder under the name of a part is damage: it can be set aside.
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, IsADirectoryError):
        raise UnreadableError(f"{path} can't be read: {error.strerror or error}") from None


def remedy(path: Path) -> str:
    """The advice about a damaged file of a run."""
    # A table's folder stands in trace/ or sharpness/, or in the run itself (landscape).
    run = next((folder.parent for folder in path.parents if folder.name in ("trace", "sharpness")), path.parents[1])
    return f"'tvlars-probe check {shlex.quote(str(run))} --repair' sets it aside"


def first_line(error: BaseException) -> str:
    """The first line of an error's text that isn't blank; the error's class where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
