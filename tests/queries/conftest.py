from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.queries.made_runs import make_runs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return make_runs(tmp_path / "runs")
