"""The checks of accelerators hold on the CPU, so that they work the first time they meet a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_checks(device: str) -> str:
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/gpu"]
    environment = {**os.environ, "TVLARS_DEVICE": device, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_checks_hold_on_the_cpu() -> None:
    summary = run_checks("cpu").splitlines()[-1]
    assert "passed" in summary
    assert int(summary.split(" passed")[0].split()[-1]) > 90


@pytest.mark.slow
def test_without_a_device_they_are_skipped() -> None:
    summary = run_checks("cuda").splitlines()[-1]
    assert "skipped" in summary
    assert "passed" not in summary
