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


def width_of(alpha: Any, loss: Any) -> Any:
    return analyse_landscape(rows(alpha, loss), RunFacts(name="x")).verdict


COARSE = [-5e4, 0.0, 5e4]
UNTOLD: dict[str, tuple[list[float], list[float], str]] = {
    "far above the level": (
        COARSE,
        [1e20, 0.1, 1e20],
        "between α = 0 and −5e+04, and it rises so far between α = 0 and",
    ),
    "not finite": (COARSE, [np.inf, 0.1, np.nan], "between α = 0 and −5e+04, where it isn't finite, and it rises"),
    "one side too coarse": (
        [-0.2, -0.1, 0.0, 9.0],
        [3.0, 0.2, 0.1, 8.0],
        "at α = −0.13, and it rises so far between α = 0 and 9; take more",
    ),
    "not finite after fine points": ([-2.0, -1.0, 0.0, 1.0, 2.0], [9.0, 0.2, 0.1, 0.2, np.inf], "between α = 1 and 2"),
    "a side without points": (
        [0.0, 1.0, 2.0],
        [0.1, 0.2, 9.0],
        "1: no point lies below α = 0, and it rises so far at α = 1.1",
    ),
    "an end far beyond the last low point": (
        [-2.0, 0.0, 1.0, 9.0],
        [0.2, 0.1, 0.2, 9.0],
        "it doesn't up to α = −2, and it rises so far betw",
    ),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_slice_whose_points_do_not_tell_the_width_says_why_and_keeps_a_bound_that_holds(name: str) -> None:
    alpha, loss, words = UNTOLD[name]
    verdict = width_of(alpha, loss)
    assert verdict["width"] is None
    assert words in verdict.reason
    below = [a for a, x in zip(alpha, loss, strict=True) if x < 1.1]  # what is seen to be below the level
    assert 0 <= verdict["least_width"] <= max(below) - min(below) + 0.2
    assert (verdict.answer == "can't tell") == (verdict["least_width"] == 0)


@pytest.mark.parametrize("points", [9, 21, 201])
@pytest.mark.parametrize("power", [1, 2, 4, 40])
@pytest.mark.parametrize("span", [0.4, 3.0, 30.0, 1e5])
def test_a_width_that_is_told_is_within_a_factor_of_two(points: int, power: int, span: float) -> None:
    """The loss |2α|^p rises by 1 at |α| = ½ exactly."""
    alpha = np.linspace(-span, span, points)
    verdict = width_of(alpha, np.abs(2 * alpha) ** power)
    told = {figure.name: figure.value for figure in verdict.figures}
    assert told.get("width") is None or 0.5 <= told["width"] <= 2.0
    assert told.get("least_width") is None or told["least_width"] <= 1.0


def test_a_checkpoint_that_is_not_the_lowest_point_is_still_the_reference() -> None:
    verdict = width_of(ALPHA, 4 * (ALPHA - 0.25) ** 2)
    assert (verdict["left"], verdict["right"]) == (pytest.approx(0.309, abs=0.01), pytest.approx(0.809, abs=0.01))


@pytest.mark.parametrize(
    ("alpha", "loss", "beta", "words"),
    [
        ([-1.0, 0.5, 1.0], [2.0, 0.1, 2.0], np.nan, "doesn't hold the checkpoint"),
        ([-1.0, 0.0, 1.0], [2.0, 0.1, 2.0], 0.5, "doesn't hold the checkpoint"),
        (ALPHA, 1e20 + 0 * ALPHA, np.nan, "rounding hides a rise by 1"),
        (ALPHA, 4e6 + 4 * ALPHA**2, np.nan, "rounding hides a rise by 1"),
    ],
    ids=["no centre", "a plane without its line", "equal in float64", "equal in float32"],
)
def test_a_rise_that_can_not_be_seen_is_not_told(alpha: Any, loss: Any, beta: float, words: str) -> None:
    verdict = analyse_landscape(rows(alpha, loss, beta=beta), RunFacts(name="x")).verdict
    assert verdict.answer == "can't tell"
    assert words in verdict.reason


def line_of(alpha: Any, loss: Any) -> Any:
    return analyse_landscape(rows(alpha, loss, run2="other"), RunFacts(name="x")).verdict


@pytest.mark.parametrize(
    ("alpha", "loss", "words"),
    [
        ([-1.0, 0.0, 1.0, 2.0], [9.0, 1.0, 1.0, 9.0], "points between the runs lie up to 1 apart"),
        ([-0.25, 0.0, 0.5, 1.0], [9.0, 1.0, 1.0, 1.0], "lie up to 0.5 apart"),
        ([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 1.0, np.nan, 1.0, 1.0], "isn't finite at 1 of 5 points"),
        ([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, np.inf, np.nan, 1.0, 1.0], "isn't finite at 2 of 5 points"),
        ([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 1.0, 1.0, 1.0, np.nan], "no finite loss at α = 1,"),
        ([0.0, 0.25, 0.5, 0.75], [1.0, 1.0, 1.0, 1.0], "no finite loss at α = 1,"),
        ([0.25, 0.5, 0.75], [1.0, 5.0, 1.0], "no finite loss at α = 0 and α = 1,"),
        ([0.0, 0.25, 0.5, 0.75, 1.0], [1e20, 1e20, 1e20, 1e20, 3e20], "rounding hides a barrier of 0.1"),
    ],
    ids=["nothing between", "one point between", "nan between", "two bad", "nan end", "no end", "no ends", "huge"],
)
def test_a_line_that_does_not_show_the_whole_way_rules_no_barrier_out(alpha: Any, loss: Any, words: str) -> None:
    verdict = line_of(alpha, loss)
    assert verdict.answer == "can't tell"
    assert words in verdict.reason


def test_a_barrier_that_is_seen_is_told_whatever_the_other_points_are() -> None:
    assert line_of([0.0, 0.5, 1.0], [1.0, 1.5, 1.0])["barrier"] == 0.5
    verdict = line_of([0.0, 0.25, 0.5, 1.0], [1.0, 3.0, np.inf, 2.0])
    assert (verdict.answer, verdict["barrier"]) == ("two basins", None)
    assert verdict["least_barrier"] == pytest.approx(1.75)
    assert "A barrier of at least 1.75 lies between them, at α = 0.25" in verdict.reason
