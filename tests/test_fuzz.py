"""Odd command lines, damaged runs and hostile files: the command line answers each in its own words."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.fuzz import Outcomes, World, fuzz, snapshot
from benchmarks.fuzzing.hostile import HOSTILE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_a_hundred_and_fifty_odd_command_lines(tmp_path: Path) -> None:
    outcomes = Outcomes()
    fuzz(World(tmp_path), 150, None, outcomes)
    torch.set_num_threads(1)
    assert outcomes.cases >= 150
    assert outcomes.damaged >= 100
    assert outcomes.faults == []
    assert {code for _, code in outcomes.codes} <= {0, 1, 2}
    assert sum(count for (_, code), count in outcomes.codes.items() if code == 0) >= 15  # not all were nonsense


@pytest.mark.slow
def test_every_kind_of_hostile_file_is_made(tmp_path: Path) -> None:
    """`Damage` passes over what can't be done: here each is done, and changes something."""
    world = World(tmp_path)
    before = snapshot(world.kept)
    for name, harm in HOSTILE.items():
        changed = 0
        for seed in range(5):
            shutil.rmtree(world.place, ignore_errors=True)
            shutil.copytree(world.kept, world.place)
            harm(world.place, random.Random(seed))
            changed += snapshot(world.place) != before
        assert changed >= 2, name
