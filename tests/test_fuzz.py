"""Odd command lines and damaged runs: the command line answers each in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.fuzz import Outcomes, World, fuzz

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_three_hundred_odd_command_lines(tmp_path: Path) -> None:
    outcomes = Outcomes()
    fuzz(World(tmp_path), 300, None, outcomes)
    torch.set_num_threads(1)
    assert outcomes.cases >= 300
    assert outcomes.damaged >= 50
    assert {code for _, code in outcomes.codes} <= {0, 1, 2}
    assert sum(count for (_, code), count in outcomes.codes.items() if code == 0) >= 30  # not all were nonsense
