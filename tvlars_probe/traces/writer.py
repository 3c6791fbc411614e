"""Rows wait in memory until they make a part. Their number and the time say when they are flushed."""

from __future__ import annotations

import errno
import stat
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.admission.names import encodable_values
from tvlars_probe.traces.compaction import compact
from tvlars_probe.traces.files import Exchange
from tvlars_probe.traces.parts import list_parts, write_part
from tvlars_probe.traces.schema import TABLES
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

FIRST_FLUSH_SECONDS = 5.0
"""The interval between flushes when a writer begins. It grows with the writer's age."""

LAST_FLUSH_SECONDS = 120.0
"""The longest interval between flushes."""

MOST_PENDING_ROWS = 1 << 20
"""With so many rows of all tables in memory a flush is due. A row of ``layers`` takes some 60 bytes."""

MOST_PARTS = 150
"""A table with more parts than this is compacted."""


class TraceWriter:
    """Writes the tables below one folder (a run's ``trace`` or ``sharpness``, or the run itself).

    Args:
        folder: the folder above those of the tables.
        run_id: what the column ``run`` holds in every row.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        self.run_id = run_id
        self._pending: dict[str, list[pa.Table]] = {}
        self._rows = 0
        self._written: set[str] = set()
        # Device and inode of the folder. Compaction replaces the tables' folders, but never the one above them.
        self._identity: tuple[int, int] | None = None
        self._places = Exchange(folder)
        self._started = self._flushed = time.monotonic()

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Add rows, in order of steps. Columns that aren't given are null.

        Args:
            table: name of the table.
            columns: arrays (NumPy or Arrow) or lists of equal length, by name of the column.

        Raises:
            ValueError: the table has no such column, a required one is missing, or lengths or types don't fit.
        """
        import pyarrow as pa

        schema = schema_of(table).arrow_schema(self.run_id)
        if strange := {*columns} - {*schema.names}:
            raise ValueError(f"the table {table} has no column {', '.join(sorted(map(str, strange)))}")
        if missing := [f.name for f in schema if not f.nullable and f.name not in {"run", *columns}]:
            raise ValueError(f"rows of the table {table} need {', '.join(missing)}")
        length = len(columns["step"])
        if not length:
            return
        # One string and an index per row, instead of the same string in every row.
        run = pa.DictionaryArray.from_arrays(np.zeros(length, np.int32), pa.array([self.run_id]))
        arrays: list[pa.Array[Any]] = []
        for field in schema:
            if field.name == "run":
                arrays.append(run)
            elif (values := columns.get(field.name)) is None:
                arrays.append(pa.nulls(length, field.type))
            else:
                given = encodable_values(values) if isinstance(values, list) else values
                arrays.append(given if isinstance(given, pa.Array) else pa.array(given, field.type))
        rows = pa.Table.from_arrays(arrays, schema=schema)
        rows.validate()
        self._pending.setdefault(table, []).append(rows)
        self._rows += length

    @property
    def due(self) -> bool:
        """Whether it is time to flush: there are rows enough, or the last flush is long enough ago.

        The time counts even if no row is here: the recorder's buffer holds some.
        """
        now = time.monotonic()
        # A twentieth of the writer's age: between the two limits a kill costs at most 5 % of the time spent.
        interval = min(max(FIRST_FLUSH_SECONDS, (now - self._started) / 20), LAST_FLUSH_SECONDS)
        return self._rows >= MOST_PENDING_ROWS or now - self._flushed >= interval

    def flush(self, boundaries: Sequence[int] = ()) -> dict[str, pa.Table]:
        """Write the pending rows, one part per table. A table with more than `MOST_PARTS` parts is compacted.

        Args:
            boundaries: steps of the checkpoints kept; no merged part straddles one.

        Returns:
            the rows that were written, by table.

        Raises:
            OSError: the file system refuses, or a folder has vanished or was replaced.
        """
        import pyarrow as pa

        if self._identity is not None or any(self._pending.values()):
            self._refuse_another_folder()
        for table in self._written:
            if not (self.folder / table).is_dir():
                raise FileNotFoundError(errno.ENOENT, "the rows written so far have vanished", str(self.folder / table))
        written = {}
        for table, chunks in self._pending.items():
            if chunks:
                rows = pa.concat_tables(chunks).unify_dictionaries()
                write_part(self.folder / table, schema_of(table), rows)
                chunks.clear()  # at once: if the next table can't be written, another flush must not repeat this one
                self._written.add(table)
                written[table] = rows
        self._rows = 0
        self._flushed = time.monotonic()
        for table in self._pending:
            if len(list_parts(self.folder / table)) > MOST_PARTS:
                self.compact(table, boundaries)
        return written

    def _refuse_another_folder(self) -> None:
        """Make the folder at first; later, refuse to write if another folder, or a link, stands in its place.

        Raises:
            FileNotFoundError: the folder has vanished.
            NotADirectoryError: something else stands in its place.
        """
        try:
            about = self.folder.lstat()
        except FileNotFoundError:
            if not self._identity:
                self.folder.mkdir(parents=True)
                about = self.folder.lstat()
            else:
                raise FileNotFoundError(
                    errno.ENOENT, "the rows written so far have vanished", str(self.folder)
                ) from None
        identity = (about.st_dev, about.st_ino)
        if not stat.S_ISDIR(about.st_mode) or self._identity not in (None, identity):
            raise NotADirectoryError(errno.ENOTDIR, "another folder, or a link, was put in its place", str(self.folder))
        self._identity = identity

    def compact(self, table: str, boundaries: Sequence[int] = ()) -> bool:
        """Merge small parts of a table, and tell whether anything was changed.

        Args:
            table: name of the table.
            boundaries: steps of the checkpoints kept; no merged part straddles one.
        """
        edges = _edges(table, boundaries)
        return compact(self.folder / table, schema_of(table), edges, run_id=self.run_id, places=self._places)

    def settle(self, boundaries: Sequence[int] = ()) -> None:
        """Prepare a finished run's tables for reading: few parts, and ``layers`` in order of parameters."""
        for name, schema in TABLES.items():
            if (folder := self.folder / name).is_dir() and not folder.is_symlink():
                edges = _edges(name, boundaries)
                by_parameter = name == "layers"
                compact(folder, schema, edges, by_parameter=by_parameter, run_id=self.run_id, places=self._places)


def _edges(table: str, boundaries: Sequence[int]) -> Sequence[int]:
    """The steps that no part of the table may straddle."""
    # A row of epochs has for its step the number of updates made when the epoch ended. A checkpoint after ``step``
    # updates includes the row of that step, so the edge comes one step later.
    return [step + 1 for step in boundaries] if table == "epochs" else boundaries
