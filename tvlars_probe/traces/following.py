"""Follows a trace that is being written: each look reads the rows that came since the last one, and no others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import TraceError, UnreadableError
from tvlars_probe.traces.datasets import by_step, damage, refuse_damaged
from tvlars_probe.traces.footers import check_footer
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.parts import Part, list_parts, read_part
from tvlars_probe.traces.run_directory import status
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_ROWS = 1 << 19
"""Rows of a table that the first look reads at most, beside those of its last part."""

_ATTEMPTS = 5
"""How often parts are listed at most: one that is listed may be merged into another before it is opened."""


Version = tuple[int, int, int, int]
"""What tells one content of a file, and one set of rights to it, from another."""


def version(path: Path) -> Version:
    """The version of a file.

    Raises:
        OSError: there is none, or nothing of it can be told.
    """
    # A file's number may be given again, and two saves may fall into one tick of the clock.
    about = path.stat()
    return about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_size


@dataclass(frozen=True)
class Gained:
    """What a look has found.

    Attributes:
        tables: the new rows by table, in order of steps (see `Follower`); a table without new rows is left out.
        cut_back: the step from which the run is recorded anew, where it was resumed at an earlier step than was read:
            what was read of that step and later ones no longer holds. None where nothing was cut.
        damaged: by table that can't be read, why; only where the follower passes over damage.
    """

    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    cut_back: int | None = None
    damaged: Mapping[str, TraceError] = field(default_factory=dict)


class Follower:
    """Reads a run's trace piece by piece, in any state of the run.

    Args:
        path: the run directory.
        columns: the columns wanted, by table; ``step`` is always read.
        most_rows: rows of a table that the first look reads at most, beside those of its last part: the newest ones.
        passes_over_damage: whether a look tells of damaged tables (`Gained.damaged`) and reads the others; if not, it
            raises.
        in_order: whether rows of ``layers`` are put in order of steps. Those of a finished run's parts are in order of
            parameters, and to sort a million of them takes longer than to read them.

    Attributes:
        path: the run directory.
        manifest: the run's manifest as it was at the last look.

    Raises:
        RunDirectoryError: there is no run, or its manifest can't be read.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, Sequence[str]],
        *,
        most_rows: int = MOST_ROWS,
        passes_over_damage: bool = False,
        in_order: bool = True,
    ) -> None:
        self.path, self._most_rows, self._passes, self._in_order = path, most_rows, passes_over_damage, in_order
        self._columns = {table: [*dict.fromkeys(("step", *names))] for table, names in columns.items()}
        # Before the manifest is read: one that is saved meanwhile is read at the first look.
        self._changed = self._change()
        self.manifest = Manifest.load(path)
        self._segments = len(self.manifest.segments)
        self._read: dict[str, set[str]] = {}
        self._last_step: dict[str, int] = {}
        self._damaged: dict[str, tuple[set[tuple[Path, Version | None]], TraceError]] = {}

    @property
    def status(self) -> str:
        """The run's status by the last look's manifest: running, completed, diverged, interrupted, failed or killed.

        A run that ends after the look is killed by this manifest: look again before you believe it.
        """
        return status(self.path, self.manifest)

    def look(self) -> Gained:
        """Read what came since the last look.

        Raises:
            RunDirectoryError: the manifest can't be read any more.
            TraceError: a part is damaged, or its columns are no table's.
        """
        cut_back = self._renew_manifest()
        tables, damaged = {}, {}
        for table in self._columns:
            try:
                rows = self._new_rows(table)
            except TraceError as error:
                if not self._passes:
                    raise
                damaged[table] = error
                continue
            if rows is not None and len(rows):
                tables[table] = rows
        return Gained(tables, cut_back, damaged)

    def _change(self) -> Version | None:
        try:
            return version(self.path / FILE_NAME)
        except OSError:  # to load it tells what is wrong
            return None

    def _renew_manifest(self) -> int | None:
        """Read the manifest again if it was replaced. Returns the step to which the run was cut back, if it was."""
        changed = self._change()
        if changed is not None and changed == self._changed:
            return None
        before = self.manifest.run_id
        self.manifest, self._changed = Manifest.load(self.path), changed
        if self.manifest.run_id != before:  # somebody has put another run in its place
            self._segments = len(self.manifest.segments)
            self._read.clear()
            self._last_step.clear()
            return 0
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
        folder = self.path / "trace" / table
        for attempt in range(_ATTEMPTS):
            parts = self._unread(table, folder)
            versions = _versions(parts)
            # What is damaged stays so until somebody changes it: it isn't read again and again.
            if table in self._damaged and self._damaged[table][0] == versions:
                raise self._damaged[table][1]
            try:
                rows = self._rows_of(table, parts)
                break
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise TraceError(f"parts of the table {table} of {self.path} vanish while they are read") from None
            except TraceError as error:
                self._damaged[table] = versions, error
                raise
        self._damaged.pop(table, None)
        # Of a table whose parts were merged only the merged ones are there.
        self._read[table] = self._read.get(table, set()) | {part.path.name for part in parts}
        if parts:
            self._last_step[table] = max(self._last_step.get(table, -1), *(part.last_step for part in parts))
        return rows

    def _unread(self, table: str, folder: Path) -> list[Part]:
        try:
            return [part for part in list_parts(folder) if part.path.name not in self._read.get(table, ())]
        except FileNotFoundError:  # the folder has vanished since it was asked for
            return []
        except OSError as error:
            raise UnreadableError(f"{folder} can't be read: {error.strerror or error}") from None

    def _rows_of(self, table: str, parts: Sequence[Part]) -> pa.Table | None:
        """The rows of these parts that weren't read before; None where no part has any.

        Raises:
            FileNotFoundError: a part has vanished.
            TraceError: a part is damaged.
        """
        import pyarrow as pa

        last, schema = self._last_step.get(table), schema_of(table).arrow_schema()
        # Parts that end before the last step were merged from parts that were read.
        left = parts if last is None else [part for part in parts if part.last_step > last]
        footers = self._footers(table, left, self._most_rows if last is None else None)
        parts = left[len(left) - len(footers) :]
        if not parts:
            return None
        paths = [part.path for part in parts]
        try:
            pieces = [
                # In one thread: several take half as much time again of the processor, which the training may need. For
                # the first look somebody waits, who has just asked.
                read_part(path, footer, self._columns[table], schema, use_threads=last is None)
                for path, footer in zip(paths, footers, strict=True)
            ]
            rows = pa.concat_tables(pieces).unify_dictionaries()
            refuse_damaged(table, rows, paths)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, OverflowError) as error:
            raise TraceError(damage(self.path, table, paths, error)) from None
        if last is not None and parts[0].first_step <= last:
            import pyarrow.compute as pc  # takes a tenth of a second, and is seldom needed

            rows = rows.filter(pc.field("step") > last)
        return by_step(rows) if table == "layers" and self._in_order else rows

    def _footers(self, table: str, parts: Sequence[Part], most_rows: int | None) -> list[pq.FileMetaData]:
        """The footers of the last parts: of all, or of those with at most so many rows, but of one at least."""
        rows, footers = 0, list[Any]()
        for part in reversed(parts):
            if most_rows is not None and rows >= most_rows:  # before the next footer is read: its check takes time
                break
            footer = check_footer(part.path, table, self.manifest.run_id)
            rows += footer.num_rows
            if most_rows is not None and rows > most_rows and footers:
                break
            footers.append(footer)
        return footers[::-1]


def _versions(parts: Sequence[Part]) -> set[tuple[Path, Version | None]]:
    found: set[tuple[Path, Version | None]] = set()
    for part in parts:
        try:
            found.add((part.path, version(part.path)))
        except OSError:
            found.add((part.path, None))
    return found
