"""Removes the folders that a failed operation has made."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """If the body raises, remove ``folder`` and those of its parents that didn't exist before.

    A folder that existed before is left as it is, with whatever the body has put into it.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:  # Ctrl-C during a download, too
        if missing:
            # The last one is the topmost: the others are inside.
            shutil.rmtree(missing[-1], ignore_errors=True)
        raise
