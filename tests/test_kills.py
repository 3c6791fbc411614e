"""Training processes killed at random moments, resumed, and compared with runs that nobody killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_killed_and_resumed_runs_are_those_that_nobody_killed() -> None:
    """In a process of its own: it forks, which one that has started threads must not do."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "8", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(line.split()[0]) for line in done.stdout.splitlines() if " kills in " in line]
    assert sum(counts) >= 8
    assert done.stdout.count("traces that aren't whole: 0") == 4
