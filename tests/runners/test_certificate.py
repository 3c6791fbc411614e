"""Runs on several ranks against one, and faults that the comparison must find."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.conftest import run_cli
from tvlars_probe.errors import UserError
from tvlars_probe.runners import certificate
from tvlars_probe.runners.certificate import Certificate, Deviation, certify

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_holds_here(tmp_path: Path) -> None:
    found = json.loads(run_cli("certify", "--json", cwd=tmp_path).stdout)
    assert found["holds"]
    assert len(found["deviations"]) == 2 * 2 * 3
    assert found["shares"] == {"1": [[45], [7]], "2": [[23, 22], [4, 3]], "4": [[12, 11, 11, 11], [2, 2, 2, 1]]}
    # A float64 run deviates by what float64 rounds, a billionth of a float32 run's.
    assert all(one["difference"] < 1e-9 for one in found["deviations"] if one["precision"] == "float64")


@pytest.mark.slow
def test_ranks_that_count_alike_whatever_their_share_are_found(tmp_path: Path) -> None:
    """A mean over ranks of each rank's mean, as loops have it that don't weight by samples."""
    (tmp_path / "sitecustomize.py").write_text(
        "import dataclasses\n"
        "from tvlars_probe.runners.phases.classification import Classification as C\n"
        "right = C.backward\n"
        "def backward(self, replica, share, epoch, tally):\n"
        "    mine = dataclasses.replace(share, batch_size=share.size * replica.ranks.world_size)\n"
        "    return right(self, replica, mine, epoch, tally)\n"
        "C.backward = backward\n"
    )
    done = run_cli("certify", "--json", cwd=tmp_path, check=False, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["holds"]
    assert {one["quantity"] for one in found["deviations"] if not one["is_explained"]} >= {"weights", "losses"}


def deviation(difference: float) -> Deviation:
    return Deviation(
        precision="float64", ranks=2, quantity="losses", difference=difference, rounding=1e-15, allowed=1e-13
    )


@pytest.mark.parametrize(("difference", "holds"), [(1e-14, True), (1e-12, False), (float("nan"), False)])
def test_rounding_explains_what_it_may(difference: float, holds: bool) -> None:
    found = Certificate(optimizer="lars", shares={}, deviations=(deviation(difference),), seconds=1.0)
    assert found.holds is holds
    assert found.as_dict()["deviations"][0]["is_explained"] is holds


def test_a_mean_over_ranks_that_isnt_weighted_by_samples_is_not_rounding() -> None:
    """The gradient of 7 samples as the mean of means over 4 and 3: off by far more than any order of sums."""
    torch.manual_seed(0)
    samples = torch.randn(7, 100, dtype=torch.float64)
    whole, parts = samples.mean(0), samples.tensor_split(2)
    weighted = sum(len(p) * p.mean(0) for p in parts) / 7
    unweighted = torch.stack([p.mean(0) for p in parts]).mean(0)
    assert certificate._difference([whole], [weighted]) < 1e-15
    assert certificate._difference([whole], [unweighted]) > 1e-2


def test_what_lacks_a_figure_can_not_hold() -> None:
    assert certificate._difference([], []) != certificate._difference([], [])


def test_torchruns_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "launched_by_torchrun", lambda: True)
    with pytest.raises(UserError, match="certify starts its own ranks: call it without torchrun"):
        certify()
