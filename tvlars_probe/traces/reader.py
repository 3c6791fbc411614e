"""Reads a run's trace. Columns and rows are chosen before they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

from tvlars_probe.admission.names import encodable
from tvlars_probe.errors import RunDirectoryError, TraceError
from tvlars_probe.traces.datasets import (
    BATCH_ROWS,
    by_step,
    condition_of,
    damage,
    dataset_of,
    names_of,
    no_rows,
    refuse_damaged,
    row_groups_of,
    sound,
    unfound,
)
from tvlars_probe.traces.footers import check_footer, rows_in_memory
from tvlars_probe.traces.frames import Frames
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.manifest_entries import ParameterEntry
from tvlars_probe.traces.parts import list_parts, read_part
from tvlars_probe.traces.run_directory import status
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Set

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tvlars_probe.traces.frames import RowChoice

    StrPath = str | os.PathLike[str]

T = TypeVar("T")

_ATTEMPTS = 5
"""How often the parts are listed at most: a part that is listed may be merged into another before it is opened."""


class Trace(Frames):
    """The trace of a run in any state: being written, finished or killed, also by an older version.

    Attributes:
        path: the run directory.
        name: name of the run directory. Where several runs share a name, `tvlars_probe.runs.open_runs` puts folders
            above it in front.
        manifest: the run's manifest as it was when this object was made.

    Raises:
        RunDirectoryError: there is no run, or its manifest can't be read.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(expanded(path))
        self.name = encodable(self.path.name)
        if not self.path.is_dir():
            raise RunDirectoryError(f"there is no run at {self.path}")
        self.manifest = Manifest.load(self.path)

    def __fspath__(self) -> str:
        """The run directory: an opened run stands wherever its path does."""
        return str(self.path)

    @property
    def status(self) -> str:
        """The run's status now: running, completed, diverged, interrupted, failed or killed."""
        return status(self.path, self.manifest)

    def parameters(self, phase: str | None = None) -> pd.DataFrame:
        """The table of parameters of a phase (the last one by default): name, layer, kind, shape, adapted, ..."""
        import pandas as pd

        phases = self.manifest.parameters
        chosen = phase or next(reversed(phases), "train")
        # Of the known columns alone: a frame has room for each key of one entry in all others' rows.
        known = ParameterEntry.__annotations__
        return pd.DataFrame([{name: e[name] for name in e if name in known} for e in phases.get(chosen, [])])

    def rows(self, table: str, columns: Sequence[str] | None = None, **choice: Unpack[RowChoice]) -> pa.Table:
        schema, parameters = schema_of(table), choice.get("parameters")
        columns = None if columns is None else names_of(columns)
        for column in (*(columns or ()), *(() if parameters is None else ("parameter",))):
            schema[column]  # raises if there is no such column
        wanted, condition = list(columns or schema.names), condition_of(**choice)
        # Only this table is ever out of order, and sorting it takes its steps.
        read_columns = [*wanted, *({"step"} - {*wanted})] if table == "layers" else wanted

        def read(paths: Sequence[Path], footers: Sequence[pq.FileMetaData]) -> pa.Table:
            if not paths:
                return no_rows(table, read_columns)
            dataset = dataset_of(paths, schema.arrow_schema())
            if parameters is not None:
                dataset = row_groups_of(dataset, names_of(parameters))
            self._refuse_too_many(table, read_columns, footers, lambda: dataset.count_rows(filter=condition))
            rows = dataset.to_table(columns=read_columns, filter=condition).unify_dictionaries()
            refuse_damaged(table, rows, paths)
            return rows

        rows = self._with_parts(table, wanted, read)
        return by_step(rows).select(wanted) if table == "layers" else rows

    def whole_rows(self, table: str, columns: Sequence[str]) -> pa.Table:
        """All rows of a table, as Arrow has them and in the order of its parts. pandas isn't loaded for it.

        Args:
            table: name of the table.
            columns: the columns wanted, of which one at least is in every trace.

        Raises:
            UserError: there is no such table or column.
            TraceError: the trace lacks a column, a part is damaged, or memory can't hold the rows.
        """
        import pyarrow as pa

        wanted, schema = list(columns), schema_of(table).arrow_schema()

        def read(paths: Sequence[Path], footers: Sequence[pq.FileMetaData]) -> pa.Table:
            if not paths:
                return no_rows(table, wanted)
            self._refuse_too_many(table, wanted, footers)
            pairs = zip(paths, footers, strict=True)
            pieces = [read_part(path, footer, wanted, schema, use_threads=True) for path, footer in pairs]
            rows = pa.concat_tables(pieces).unify_dictionaries()
            refuse_damaged(table, rows, paths)
            return rows

        return self._with_parts(table, wanted, read)

    def count_rows(self, table: str) -> int:
        """The number of rows of a table, by the footers of its parts alone.

        Raises:
            TraceError: a part is damaged.
        """
        return self._with_parts(table, [], lambda _, footers: sum(footer.num_rows for footer in footers))

    def batches(
        self,
        table: str,
        columns: Sequence[str],
        use: Callable[[Iterator[pa.RecordBatch]], T],
        *,
        steps: tuple[int, int] | None = None,
    ) -> T:
        """Hand the rows of a table to ``use`` in batches: they are never all in memory.

        Rows come in order of steps, but those of a finished run's ``layers`` in order of parameters. ``use`` is called
        again from the start if parts are merged while it reads.

        Args:
            table: name of the table.
            columns: the columns wanted.
            use: makes something of the batches.
            steps: the first and the last step wanted, both included.

        Returns:
            what ``use`` returned.

        Raises:
            TraceError: the trace lacks a column, or a part is damaged.
        """
        wanted, condition = list(columns), condition_of(steps=steps)

        def read(paths: Sequence[Path], _: Sequence[pq.FileMetaData]) -> T:
            if not paths:
                return use(iter(()))
            found = dataset_of(paths, schema_of(table).arrow_schema()).to_batches(
                columns=wanted,
                filter=condition,
                batch_size=BATCH_ROWS,
                batch_readahead=2,
                fragment_readahead=1,
                use_threads=False,  # threads would run ahead of the reader, and hold what they read
            )
            return use(sound(table, found, paths))

        return self._with_parts(table, wanted, read)

    def _with_parts(
        self, table: str, columns: list[str], read: Callable[[Sequence[Path], Sequence[pq.FileMetaData]], T]
    ) -> T:
        """Hand the table's parts to ``read``, and return what it makes of them.

        Args:
            table: name of the table.
            columns: the columns that must be in the trace.
            read: gets the paths of the parts, which may be none, and their footers. It is called again if parts vanish
                meanwhile, in a merge.

        Raises:
            TraceError: a column is missing, or a part is damaged.
            UnreadableError: the system refuses to read a part.
        """
        import pyarrow as pa

        # Recorded in training, measured at checkpoints, or (landscape, noise) in a folder of the run itself.
        folders = [self.path / home / table for home in ("trace", "sharpness", ".")]
        for attempt in range(_ATTEMPTS):
            paths = [part.path for folder in folders for part in list_parts(folder)]
            if not paths:
                return read(paths, [])
            try:
                # All footers are checked before any row is read: parts may be a stranger's.
                footers = [check_footer(path, table, self.manifest.run_id) for path in paths]
                there = [{*footer.schema.to_arrow_schema().names} for footer in footers]
                self._refuse_missing(table, columns, {*there[0]}.intersection(*there))
                return read(paths, footers)
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise TraceError(unfound(table, paths)) from None
            except (pa.ArrowException, OSError, OverflowError) as error:
                raise TraceError(damage(self.path, table, paths, error)) from None
        raise AssertionError("unreachable")

    def _refuse_too_many(
        self,
        table: str,
        columns: Sequence[str],
        footers: Sequence[pq.FileMetaData],
        chosen: Callable[[], int] | None = None,
    ) -> None:
        """Refuse rows that memory can't hold: a few bytes on disk may stand for any number of equal rows.

        Args:
            table: name of the table.
            columns: the columns to be read.
            footers: of the table's parts.
            chosen: counts the rows to be read; all by default.

        Raises:
            TraceError: the rows chosen are too many.
        """
        most, rows = rows_in_memory(schema_of(table).row_bytes(columns)), sum(footer.num_rows for footer in footers)
        if rows > most and chosen is not None:
            rows = chosen()
        if rows > most:
            raise TraceError(
                f"the table {table} of {self.path} has {rows:,} rows, of which this machine's memory holds {most:,}: "
                f"choose fewer columns, steps or parameters"
            )

    def _refuse_missing(self, table: str, columns: list[str], there: Set[str]) -> None:
        # Whoever asks for all columns gets nulls in those that an older version didn't record.
        missing = sorted({*columns} - there - {c.name for c in schema_of(table).columns if c.later})
        if missing and columns != list(schema_of(table).names):
            raise TraceError(f"{self.path} has no column {', '.join(missing)} in {table}: an older version recorded it")


def expanded(path: StrPath) -> str:
    """The path with the home folder in place of ``~``."""
    return os.path.expanduser(os.fspath(path))  # noqa: PTH111 (a user unknown is no error)
