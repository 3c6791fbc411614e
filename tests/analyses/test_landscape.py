from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.landscape import analyse_landscape
from tvlars_probe.charts.landscape import landscape_map

ALPHA = np.linspace(-1, 1, 41)


def rows(alpha: Any, loss: Any, **further: Any) -> pd.DataFrame:
    told = {"measurement_id": "m", "created_at": pd.Timestamp(0), "step": 1, "run2": None, "beta": np.nan,
            "acc1": 50.0, "split": "train", "bn_mode": "interpolated", "seed": 0}  # fmt: skip
    return pd.DataFrame({"alpha": alpha, "loss": loss}).assign(**{**told, **further})


def test_the_width_of_a_parabola_is_that_of_its_level_set() -> None:
    result = analyse_landscape(rows(ALPHA, 4 * ALPHA**2 + 0.3), RunFacts(name="x"), rise=1.0)
    assert result.verdict["width"] == pytest.approx(1.0, abs=2e-3)  # 4 a² < 1 for |a| < ½
    assert analyse_landscape(rows(ALPHA, 0.1 * ALPHA**2), RunFacts(name="x")).verdict.answer == "wider than the slice"


def test_a_barrier_is_measured_above_the_line_through_both_ends() -> None:
    line = np.linspace(0, 1, 21)
    bump = 1.0 + line + 0.8 * np.sin(np.pi * line)
    result = analyse_landscape(rows(line, bump, run2="other"), RunFacts(name="x"))
    assert result.verdict.answer == "two basins"
    assert result.verdict["barrier"] == pytest.approx(0.8)
    assert result.verdict["at"] == pytest.approx(0.5)
    assert analyse_landscape(rows(line, 1.0 + line, run2="other"), RunFacts(name="x")).verdict.answer == "one basin"


def test_the_newest_slice_is_read_and_a_plane_holds_its_line() -> None:
    old = rows(ALPHA, ALPHA**2)
    grid = [(a, b) for a in (-1.0, 0.0, 1.0) for b in (-0.5, 0.0, 0.5)]
    alpha, beta = (np.array(column) for column in zip(*grid, strict=True))
    new = rows(alpha, alpha**2 + beta**2, beta=beta, measurement_id="n", created_at=pd.Timestamp(1))
    result = analyse_landscape(pd.concat([new, old]), RunFacts(name="x"))
    assert len(result.plane) == 9
    assert result.line["alpha"].tolist() == [-1, 0, 1]


def test_each_side_of_a_slice_is_told() -> None:
    verdict = analyse_landscape(rows(ALPHA, np.where(ALPHA < 0, 4 * ALPHA**2, 0.1 * ALPHA)), RunFacts(name="x")).verdict
    assert verdict.answer == "above 1.5"
    assert verdict.reason == (
        "The loss rises by 1 at α = −0.5, and by less on the other side, up to the slice's end at α = 1: "
        "width above 1.5"
    )
    assert (verdict["left"], verdict["right"]) == (pytest.approx(0.5), None)
    first = verdict.figures[0]
    assert (first.name, first.value) == ("least_width", pytest.approx(1.5))
    mirrored = analyse_landscape(rows(ALPHA, np.where(ALPHA > 0, 4 * ALPHA**2, 0)), RunFacts(name="x")).verdict
    assert "at α = 0.5, and by less on the other side, up to the slice's end at α = −1" in mirrored.reason
    flat = analyse_landscape(rows(ALPHA, 0.1 * ALPHA**2), RunFacts(name="x")).verdict
    assert flat.reason == "The loss rises by less than 1 on both sides, from α = −1 to 1"
    assert (flat.figures[0].name, flat.figures[0].value) == ("least_width", 2.0)


@pytest.mark.parametrize("loss", [ALPHA * np.nan, np.where(ALPHA == 0, np.inf, 1.0)], ids=["nowhere", "at the centre"])
def test_a_loss_that_is_not_finite_at_the_checkpoint_tells_nothing(loss: Any) -> None:
    verdict = analyse_landscape(rows(ALPHA, loss), RunFacts(name="x")).verdict
    assert verdict.answer == "can't tell"
    assert "the loss at the checkpoint is" in verdict.reason


def test_a_single_point_tells_nothing() -> None:
    assert analyse_landscape(rows([0.0], [1.0]), RunFacts(name="x")).verdict.answer == "can't tell"


def test_a_plane_has_a_sentence_of_its_own() -> None:
    alpha, beta = (grid.ravel() for grid in np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]))
    loss = 0.5 * alpha**2 + 3 * beta**2 + 0.25
    plane = analyse_landscape(rows(alpha, loss, beta=beta), RunFacts(name="x"))
    assert plane.verdict.answer == "wider than the slice"
    assert plane.plane_reason == (
        "Over the plane the loss goes from 0.25 to 3.75 and rises by less than 1 at 33.3 % of the points"
    )
    title = landscape_map(plane).to_dict()["title"]
    assert title["text"] == plane.plane_reason
    broken = analyse_landscape(rows(alpha, np.where(beta > 0, np.nan, loss), beta=beta), RunFacts(name="x"))
    assert broken.plane_reason.endswith("; it is not finite at 3 of 9")
    nothing = analyse_landscape(rows(alpha, loss * np.nan, beta=beta), RunFacts(name="x"))
    assert nothing.plane_reason == "The loss is finite nowhere on the plane"


def test_the_other_end_of_a_line_has_the_runs_name() -> None:
    line = np.linspace(0, 1, 5)
    named = [analyse_landscape(rows(line, line, run2=given), RunFacts(name="x")) for given in ("s0.c6ec29", "my.run")]
    assert [result.run2 for result in named] == ["s0", "my.run"]
