from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.traces.table_parts import steps_in, write
from tvlars_probe.traces import files
from tvlars_probe.traces.compaction import compact
from tvlars_probe.traces.schema import STEPS

if TYPE_CHECKING:
    from pathlib import Path


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.replace_file(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_cannot_exchange_folders_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, (0, 2), (3, 5))
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(OSError, match="can't exchange two folders"):
        files.exchange(folder, tmp_path)
    assert not compact(folder, STEPS)
    assert steps_in(folder) == [*range(6)]
