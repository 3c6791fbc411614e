"""Follows the runs of a folder, as many as a list shows: those that were written last."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from tvlars_probe.admission.names import encodable
from tvlars_probe.live.live_run import LiveRun
from tvlars_probe.traces.manifest import FILE_NAME
from tvlars_probe.traces.run_directory import find_runs

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.live.state import LiveState

TABLES = ("steps", "epochs", "findings")
"""The tables of which one line of a list is made."""

_ROWS = 1 << 12
"""Rows of a table that are read at first, beside those of its last part."""

_SHARE = 50
"""The folder is searched for runs in one part of so many of the time."""


class LiveRuns:
    """The runs at or below a folder, the one that was written last first.

    Args:
        folder: the folder. It need not be there.

    Attributes:
        count: runs that the last renewal found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._paths: list[Path] = []
        self._search_at = 0.0
        self._runs: dict[Path, LiveRun] = {}

    def renew(self, most: int | None = None) -> list[LiveState]:
        """The states now of the ``most`` runs (by default all) whose manifest was saved last, the latest first."""
        began = time.monotonic()
        if began >= self._search_at:
            self._paths = [*find_runs(self.folder)]
            ended = time.monotonic()
            self._search_at = ended + _SHARE * (ended - began)
        saved = {path: at for path in self._paths if (at := _saved_at(path)) is not None}
        self.count = len(saved)
        chosen = sorted(saved, key=lambda path: -saved[path])[:most]
        self._runs = {path: self._runs.get(path) or LiveRun(path, tables=TABLES, most_rows=_ROWS) for path in chosen}
        return self._told_apart([run.renew() for run in self._runs.values()])

    def _told_apart(self, states: list[LiveState]) -> list[LiveState]:
        """The states; those whose runs share a name are named by their paths below the folder."""
        counts = Counter(state.name for state in states)
        return [
            state if counts[state.name] == 1 else replace(state, name=encodable(str(path.relative_to(self.folder))))
            for path, state in zip(self._runs, states, strict=True)
        ]


def _saved_at(path: Path) -> int | None:
    try:
        return (path / FILE_NAME).stat().st_mtime_ns
    except OSError:
        return None
