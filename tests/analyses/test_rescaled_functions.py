"""Rescalings that preserve the function change neither the answer on a minimum nor the figures that it rests on."""

from __future__ import annotations

import pytest

from tests.analyses.planted_minima import COURSES, MOMENTS, analysed
from tests.curvature.rescalings import PRESERVING


@pytest.mark.parametrize("network", ["mlp", "BatchNorm", "attention"])
@pytest.mark.parametrize("course", [*COURSES])
def test_planted_minima_are_told(network: str, course: str) -> None:
    assert analysed(network, course).verdict.answer == course


@pytest.mark.parametrize("moment", [*MOMENTS])
@pytest.mark.parametrize("course", [*COURSES])
@pytest.mark.parametrize("name", [*PRESERVING])
def test_the_answer_and_its_figures_stay_as_they_are(name: str, course: str, moment: str) -> None:
    network, change = PRESERVING[name]
    plain, other = (analysed(network, course, *how) for how in ((), (change, 7.0, moment)))
    assert other.verdict.answer == plain.verdict.answer
    assert other.verdict.reason == plain.verdict.reason
    for figure in plain.verdict.figures:
        if figure.name.startswith("adaptive"):
            assert other.verdict[figure.name] == pytest.approx(figure.value, rel=1e-5)


def test_the_figures_beside_it_do_move() -> None:
    """Which is why they decide nothing: small weights before BatchNorm make raw sharpness large, not the function."""
    network, change = PRESERVING["before BatchNorm"]
    plain, other = (analysed(network, "trapped", *how).verdict for how in ((), (change, 1 / 7, "at the end")))
    assert plain["raw_end"] is not None
    assert other["raw_end"] is not None
    assert other["raw_end"] > 2 * plain["raw_end"]
