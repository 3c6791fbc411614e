"""Recorded runs, opened for reading.

Whatever a run can be asked for in one call belongs here. The module stands above traces, analyses, charts and reports,
none of which imports it.
"""

from __future__ import annotations

import collections
import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.names import encodable
from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.traces.datasets import no_rows
from tvlars_probe.traces.reader import Frames, Trace, expanded
from tvlars_probe.traces.run_directory import by_name, find_runs
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd

    from tvlars_probe.traces.reader import StrPath


class Run(Trace):
    """A recorded run, with its manifest and its tables as frames; see `tvlars_probe.traces.reader.Trace`."""

    def __repr__(self) -> str:
        return f"<Run {self.path} ({self.status})>"


class Runs(Frames):
    """Several runs read as one: their rows stand below each other, and the column ``run`` tells them apart."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = tuple(runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Run:
        return self.runs[index]

    def __repr__(self) -> str:
        return f"<Runs {', '.join(run.name for run in self.runs)}>"

    def frame(self, table: str, columns: Sequence[str] | None = None, **choice: Any) -> pd.DataFrame:
        import pandas as pd
        from pandas.api.types import union_categoricals

        frames = [run.frame(table, columns, **choice) for run in self.runs]
        if not frames:
            return no_rows(table, columns).to_pandas()
        joined = pd.concat(frames, ignore_index=True)
        # Categories differ from run to run, and pandas joins such columns as plain strings: make them categories again.
        for name in schema_of(table).of_type("name"):
            if name in joined:
                joined[name] = union_categoricals([frame[name] for frame in frames])
        return joined


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
    for given in map(expanded, paths):
        # What matches nothing is taken as it stands: a folder's own name may hold a pattern's signs.
        matches = sorted(map(Path, glob.glob(given)), key=by_name) or [Path(given)]  # noqa: PTH207 (may be absolute)
        runs = [run for match in matches for run in find_runs(match)]
        if not runs:
            raise RunDirectoryError(f"there is no run at {given}")
        found |= {run.resolve(): Run(run) for run in runs if run.resolve() not in found}
    _tell_apart(found)
    return Runs(found.values())


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
