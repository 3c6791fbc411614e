"""The blocks of docs/guides/integrations.md run, one after another, with the real packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tvlars_probe
from tests.integrations.contract import PAGE
from tests.test_docs import blocks

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_pages_blocks_run_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    for kind, text in blocks(PAGE):
        assert kind == "python"
        exec(compile(text, PAGE.name, "exec"), names)
    for name in ("trainer", "lightning", "accelerate"):
        run = tvlars_probe.open_run(tmp_path / "runs" / name)
        assert run.status == "completed"
        assert run.steps()["loss"].notna().all()
        assert run.steps()["clip_scale"].notna().all()
