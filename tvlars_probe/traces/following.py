"""Follows a trace that is being written: each look reads the rows that came since the last one, and no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tvlars_probe.errors import TraceError
from tvlars_probe.traces.datasets import by_step, damage, dataset_of, refuse_damaged
from tvlars_probe.traces.footers import check_footer
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.parts import Part, list_parts
from tvlars_probe.traces.run_directory import status
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

MOST_ROWS = 1 << 20
"""Rows of a table that the first look reads at most, beside those of its last part."""

_ATTEMPTS = 5
"""How often parts are listed at most: one that is listed may be merged into another before it is opened."""


@dataclass(frozen=True)
class Gained:
    """What a look has found.

    Attributes:
        tables: the new rows by table, in order of steps; a table without new rows is left out.
        cut_back: the step from which the run is recorded anew, where it was resumed at an earlier step than was read:
            what was read of that step and later ones no longer holds. None where nothing was cut.
    """

    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    cut_back: int | None = None


class Follower:
    """Reads a run's trace piece by piece, in any state of the run.

    Args:
        path: the run directory.
        columns: the columns wanted, by table; ``step`` is always read.
        most_rows: rows of a table that the first look reads at most, beside those of its last part: the newest ones.

    Attributes:
        path: the run directory.
        manifest: the run's manifest as it was at the last look.

    Raises:
        RunDirectoryError: there is no run, or its manifest can't be read.
    """

    def __init__(self, path: Path, columns: Mapping[str, Sequence[str]], *, most_rows: int = MOST_ROWS) -> None:
        self.path, self._most_rows = path, most_rows
        self._columns = {table: [*dict.fromkeys(("step", *names))] for table, names in columns.items()}
        self.manifest = Manifest.load(path)
        self._changed = self._change()
        self._segments = len(self.manifest.segments)
        self._read: dict[str, set[str]] = {}
        self._last_step: dict[str, int] = {}

    @property
    def status(self) -> str:
        """The run's status now: running, completed, diverged, interrupted, failed or killed."""
        return status(self.path, self.manifest)

    def look(self) -> Gained:
        """Read what came since the last look.

        Raises:
            RunDirectoryError: the manifest can't be read any more.
            TraceError: a part is damaged, or its columns are no table's.
        """
        cut_back = self._renew_manifest()
        tables = {}
        for table in self._columns:
            rows = self._new_rows(table)
            if rows is not None and len(rows):
                tables[table] = rows
        return Gained(tables, cut_back)

    def _change(self) -> tuple[int, int]:
        about = (self.path / FILE_NAME).stat()
        return about.st_mtime_ns, about.st_ino

    def _renew_manifest(self) -> int | None:
        """Read the manifest again if it was replaced. Returns the step to which the run was cut back, if it was."""
        try:
            changed: tuple[int, int] = self._change()
        except OSError:
            changed = (0, 0)  # loading it tells what is wrong
        if changed == self._changed:
            return None
        self.manifest, self._changed = Manifest.load(self.path), changed
        # A resumed run has another segment, which begins where the rows were cut.
        later = self.manifest.segments[self._segments :]
        self._segments = len(self.manifest.segments)
        first: int | None = min((segment["first_step"] for segment in later), default=None)
        if first is None or first > max(self._last_step.values(), default=-1):
            return None
        self._read.clear()
        self._last_step = {table: min(last, first - 1) for table, last in self._last_step.items()}
        return first

    def _new_rows(self, table: str) -> pa.Table | None:
        import pyarrow as pa

        folder = self.path / "trace" / table
        for attempt in range(_ATTEMPTS):
            parts = [part for part in list_parts(folder) if part.path.name not in self._read.get(table, ())]
            try:
                found = [*self._rows_of(table, parts)]
                break
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise TraceError(f"parts of the table {table} of {self.path} vanish while they are read") from None
            except (pa.ArrowException, OSError, OverflowError) as error:
                raise TraceError(damage(self.path, table, [part.path for part in parts], error)) from None
        # Of a table whose parts were merged only the merged ones are there.
        self._read[table] = self._read.get(table, set()) | {part.path.name for part in parts}
        if parts:
            self._last_step[table] = max(self._last_step.get(table, -1), *(part.last_step for part in parts))
        return pa.concat_tables(found).unify_dictionaries() if found else None

    def _rows_of(self, table: str, parts: Sequence[Part]) -> Iterator[pa.Table]:
        """The rows of these parts that weren't read before."""
        import pyarrow.compute as pc

        last, schema = self._last_step.get(table), schema_of(table).arrow_schema()
        if last is None:
            parts = self._newest(table, parts)
        for part in parts:
            if last is not None and part.last_step <= last:
                continue  # merged from parts that were read
            check_footer(part.path, table, self.manifest.run_id)
            beyond = None if last is None or part.first_step > last else pc.field("step") > last
            rows = dataset_of([part.path], schema).to_table(columns=self._columns[table], filter=beyond)
            refuse_damaged(table, rows, [part.path])
            yield by_step(rows) if table == "layers" else rows

    def _newest(self, table: str, parts: Sequence[Part]) -> Sequence[Part]:
        """The last parts, with at most `MOST_ROWS` rows, or the last one alone."""
        rows, first = 0, len(parts)
        for index in range(len(parts) - 1, -1, -1):
            rows += check_footer(parts[index].path, table, self.manifest.run_id).num_rows
            if rows > self._most_rows and first < len(parts):
                break
            first = index
        return parts[first:]
