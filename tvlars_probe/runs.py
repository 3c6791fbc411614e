"""Recorded runs, opened for reading.

What can be asked of them in one call stands in `tvlars_probe.questions`; analyses, charts and reports take a
`tvlars_probe.traces.reader.Trace` and import neither.
"""

from __future__ import annotations

import collections
import glob
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from tvlars_probe.admission.names import encodable
from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.questions.of_one import AskedRun
from tvlars_probe.questions.of_several import AskedRuns
from tvlars_probe.traces.datasets import names_of, no_rows
from tvlars_probe.traces.frames import Frames
from tvlars_probe.traces.reader import Trace, expanded
from tvlars_probe.traces.run_directory import by_name, find_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from tvlars_probe.analyses.comparison import Comparison
    from tvlars_probe.traces.frames import RowChoice
    from tvlars_probe.traces.reader import StrPath


class Run(AskedRun, Trace):
    """A recorded run: its tables, as `tvlars_probe.traces.reader.Trace` reads them, and what can be asked of it."""

    @property
    def _traces(self) -> tuple[Trace]:
        return (self,)


class Runs(AskedRuns, Frames):
    """Several runs as one: their rows stand below each other, and the column ``run`` tells them apart."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = tuple(runs)

    @property
    def _traces(self) -> tuple[Run, ...]:
        return self.runs

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Run:
        return self.runs[index]

    def rows(self, table: str, columns: Sequence[str] | None = None, **choice: Unpack[RowChoice]) -> pa.Table:
        import pyarrow as pa

        found = [run.rows(table, columns, **choice) for run in self.runs]
        # The dictionaries of names differ from run to run: they become one.
        if not found:
            return no_rows(table, None if columns is None else names_of(columns))
        return pa.concat_tables(found).unify_dictionaries()


def open_run(path: StrPath) -> Run:
    """Open a recorded run for reading.

    Raises:
        RunDirectoryError: there is no run, or its manifest can't be read.
    """
    return Run(path)


def open_runs(paths: StrPath | Iterable[StrPath]) -> Runs:
    """Open several runs for reading; a run that is found twice is read once.

    Args:
        paths: run directories, folders of runs, or glob patterns.

    Raises:
        RunDirectoryError: a path holds no run.
    """
    if isinstance(paths, str | Path) or hasattr(paths, "__fspath__"):
        paths = [paths]  # type: ignore[list-item]
    found: dict[Path, Run] = {}
    for path in paths:
        given = expanded(path)
        # What matches nothing is taken as it stands, since a folder's name may hold a pattern's signs; so is a run.
        named = [] if isinstance(path, Trace) else map(Path, glob.glob(given))  # noqa: PTH207 (may be absolute)
        matches = sorted(named, key=by_name) or [Path(given)]
        runs = [run for match in matches for run in find_runs(match)]
        if not runs:
            raise RunDirectoryError(f"there is no run at {given}")
        found |= {run.resolve(): Run(run) for run in runs if run.resolve() not in found}
    _tell_apart(found)
    return Runs(found.values())


def compare(
    runs: Runs | StrPath | Iterable[StrPath],
    *,
    metric: str = "test_acc1",
    rows: Sequence[str] = ("optimizer", "schedule", "lmbda"),
    columns: Sequence[str] = ("batch_size",),
    target: float | None = None,
) -> Comparison:
    """Put settings side by side: `tvlars_probe.runs.Runs.compare` of ``runs``, or of the runs at these paths."""
    opened = runs if isinstance(runs, Runs) else open_runs(runs)
    return opened.compare(metric=metric, rows=rows, columns=columns, target=target)


def _tell_apart(runs: Mapping[Path, Run]) -> None:
    """Lengthen the names that several runs share by the folders above them, until they differ.

    Args:
        runs: by resolved path.
    """
    # The paths are distinct, so the full paths tell any two runs apart and the loop ends.
    depth, alike = 1, {**runs}
    while alike:
        for path, run in alike.items():
            run.name = encodable("/".join(path.parts[-depth:]))
        counts = collections.Counter(run.name for run in runs.values())
        alike = {path: run for path, run in alike.items() if counts[run.name] > 1 and len(path.parts) > depth}
        depth += 1
