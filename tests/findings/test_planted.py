"""Each rule finds what is planted for it, in the flush of the step in which it is planted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.planted_findings import PLANTED, plant
from tvlars_probe.findings.ids import IDS

if TYPE_CHECKING:
    from pathlib import Path


def test_each_rule_has_its_planted_run() -> None:
    assert PLANTED.keys() == {*IDS}


@pytest.mark.parametrize("rule", IDS)
def test_what_is_planted_is_found_in_its_flush(rule: str, tmp_path: Path) -> None:
    assert plant(rule, tmp_path / "r") == (PLANTED[rule].step + PLANTED[rule].after,) * 2
