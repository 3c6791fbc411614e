"""Runs as arguments of a command line: a path, a pattern, or the name of a run below runs/, also one folder deeper."""

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses.wording import some_of
from tvlars_probe.commands.options import FilePath
from tvlars_probe.commands.text import say
from tvlars_probe.errors import RunDirectoryError, nearest
from tvlars_probe.traces.manifest import FILE_NAME
from tvlars_probe.traces.run_directory import RUNS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import click

_MOST_NAMES = 10_000
"""So many runs are looked at for one of a similar name."""


class RunPath(FilePath):
    """The path of a run or of a folder of runs, or a pattern; the name alone of what is in runs/ is one, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return found_run(super().convert(value, param, ctx))


def found_run(given: Path) -> Path:
    """The path as it is given or, if nothing is there, below runs/ or one of its folders, which is said on stderr.

    What isn't there either is left to the command, which says so, unless a run has a similar name.

    Raises:
        RunDirectoryError: nothing is there, and a run of a similar name is; or several folders of runs/ have the name.
    """
    if _is_there(given) or given.is_absolute():
        return given
    below = RUNS_FOLDER / given
    deeper = [] if _is_there(below) else _one_folder_deeper(given)
    if len(deeper) > 1:
        raise RunDirectoryError(f"there is no run at {given}, but {some_of([*map(str, deeper)])}: name one of them")
    if deeper:
        below = deeper[0]
    if _is_there(below):
        say(f"Taking {below}: there is no {given} here", err=True)
        return below
    if told := nearest(str(given), _names(given)):
        raise RunDirectoryError(f"there is no run at {given}, nor at {below}. {told}")
    return given


def _one_folder_deeper(given: Path) -> list[Path]:
    """The runs of that name in the folders of runs/; what lies within a run is none."""
    if len(given.parts) != 1 or given.name in ("", ".."):
        return []
    folders = [folder for folder in RUNS_FOLDER.glob("*/") if not (folder / FILE_NAME).exists()]
    return sorted(folder / given for folder in folders if (folder / given / FILE_NAME).exists())


def _is_there(path: Path) -> bool:
    return os.path.lexists(path) or bool(glob.glob(str(path)))  # noqa: PTH207 (the path itself may be a pattern)


def _names(given: Path) -> Iterator[str]:
    """The folders beside what is given, as one would type them, and those in runs/."""
    for folder in (given.parent, RUNS_FOLDER / given.parent):
        try:
            children = sorted(one.name for one in folder.iterdir() if one.is_dir())[:_MOST_NAMES]
        except OSError:
            continue
        yield from (str(given.parent / name) for name in children)
