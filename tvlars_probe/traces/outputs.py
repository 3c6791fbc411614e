"""Files that users name for answers, charts and reports: written whole or not at all, and never into a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tvlars_probe.errors import UserError
from tvlars_probe.traces.files import replace_file
from tvlars_probe.traces.run_directory import run_around

if TYPE_CHECKING:
    from pathlib import Path


def check_output(path: Path) -> None:
    """Refuse to write a file where it can't be, or where it mustn't be: a run directory stays as it was recorded.

    Raises:
        UserError: ``path`` is a folder, a device or anything else that is no plain file, its folder doesn't exist, or
            it lies in a run directory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    # A file takes the place of what has its name: of /dev/null, too.
    if os.path.lexists(path) and not path.is_file():
        raise UserError(f"{path} is no plain file, and would be replaced by one: name another (or leave out -o)")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    if (run := run_around(path)) is not None:
        raise UserError(f"{path} lies in the run directory {run}, which holds only what was recorded: write elsewhere")


def write_output(path: Path, content: bytes) -> None:
    """Write the file that the user named, whole or not at all.

    Raises:
        UserError: it can't be written, or `check_output` refuses it.
    """
    check_output(path)  # again: the first check may be long ago
    try:
        replace_file(path.resolve(), lambda stream: stream.write(content))  # a link stays what it is
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from None
