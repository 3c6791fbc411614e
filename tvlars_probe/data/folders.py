"""Folders that are made on the way to something, and go again where that fails."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """``folder`` and its parents, as far as they don't exist yet, are removed if what happens inside raises."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        if missing:
            shutil.rmtree(missing[-1], ignore_errors=True)
        raise
