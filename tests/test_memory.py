"""A run's peak memory is reached early, however long it goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_steps() -> None:
    """Over 6,000 recorded steps, in a process of its own: flat in the second half, little more than at the start.

    With a flush at every 1,200 rows, so that no table comes to be merged: the first merge adds some 20 MiB.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--steps", "6000", "--flush-rows", "1200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    assert "6,000 steps, 30,000 rows of layers" in done.stdout
    found = re.search(r"growth from step 750 on: (-?[\d.]+) MiB", done.stdout)
    assert found is not None
    assert float(found[1]) < 16, done.stdout
    peaks = {
        int(step.replace(",", "")): float(peak)
        for step, peak in re.findall(r"after +([\d,]+) steps: peak ([\d.]+)", done.stdout)
    }
    assert peaks[6_000] - peaks[3_000] < 4, done.stdout
