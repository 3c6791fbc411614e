"""What killed processes left half done in a run: recognised by its name, and removed."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from tvlars_probe.traces.parts import TEMPORARY_PART
from tvlars_probe.traces.schema import TABLES

if TYPE_CHECKING:
    from pathlib import Path

# The names that `replace_file` gives a manifest or checkpoint in the making, `compaction` a folder in the making, and
# `Exchange` the two empty folders of its trial.
_REPLACED = re.compile(r"\.(?:run\.json|step-\d+\.pt)\.\d+\.tmp")
_SCRATCH = re.compile(rf"\.(?:(?:{'|'.join(TABLES)})-(?:split|compact)|exchange-[ab])-\d+")


def is_unfinished(path: Path) -> bool:
    """Whether a file or folder has a name as unfinished work has. The file may also be another program's."""
    return _SCRATCH.fullmatch(path.name) is not None or (path.name.startswith(".") and path.name.endswith(".tmp"))


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left half done in a run. The caller must hold the run.

    Only what has a name that this package gives to unfinished work is removed, and no link is followed.
    """
    import shutil  # which takes long to import, and readers remove nothing

    # Each folder is listed as a whole first, since its entries are removed meanwhile.
    for home in (run, run / "checkpoints"):
        for file in [*home.iterdir()] if home.is_dir() and not home.is_symlink() else []:
            if _REPLACED.fullmatch(file.name):
                with suppress(OSError):
                    file.unlink()
    folder = run / "trace"
    if folder.is_symlink() or not folder.is_dir():
        return
    tables = [folder / name for name in TABLES]
    # Earlier versions wrote a table's parts inside its own folder.
    for home in (folder, *(table for table in tables if table.is_dir() and not table.is_symlink())):
        for file in [*home.iterdir()]:
            if TEMPORARY_PART.fullmatch(file.name):
                with suppress(OSError):
                    file.unlink()
    for path in [*folder.iterdir()]:
        if _SCRATCH.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
