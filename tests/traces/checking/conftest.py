"""Runs that are damaged."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def unmerged(trained: Callable[..., Path]) -> Path:
    """A finished run with a part per checkpointed epoch: its parts were never merged."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(TraceWriter, "settle", lambda self, boundaries: None)
        return trained("tvlars", sharpness=True, alpha=0.11)


@pytest.fixture
def run(tmp_path: Path, unmerged: Path) -> Path:
    """A copy of it to be damaged."""
    shutil.copytree(unmerged, tmp_path / "r")
    return tmp_path / "r"


@pytest.fixture
def other(tmp_path: Path, trained: Callable[..., Path]) -> Path:
    return trained("sgd")
