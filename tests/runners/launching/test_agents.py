"""Two agents of torchrun, as on two nodes, of which one loses its worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tvlars_probe
from benchmarks.agents import SETTINGS, kill_a_worker
from tests.ranked import cli_on_ranks
from tests.runners.resumed import assert_same_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_two_agents_resume_a_run_of_which_one_lost_its_worker(tmp_path: Path) -> None:
    result = kill_a_worker(tmp_path, node=1, epochs=20)
    logs = [log.read_text()[-2000:] for log in tmp_path.glob("agent-*.log")]
    assert result.completed, logs
    cli_on_ranks(2, "train", *SETTINGS.split(), "--epochs", 20, "--run-dir", "whole", cwd=tmp_path)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    first, second = tvlars_probe.open_run(tmp_path / "run").manifest.segments
    assert first["pid"] != second["pid"]
    assert second["first_step"] >= 1
