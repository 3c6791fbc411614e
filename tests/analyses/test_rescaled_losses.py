"""Changes of the loss's scale don't turn a sharp minimum into one that was escaped."""

from __future__ import annotations

import pytest

from tests.analyses.planted_minima import COURSES, MOMENTS, TEMPERATURE, analysed
from tests.curvature.rescalings import output_layer

CHANGES = {"output layer": output_layer, "temperature": TEMPERATURE}


@pytest.mark.parametrize("moment", [*MOMENTS])
@pytest.mark.parametrize("course", [*COURSES])
@pytest.mark.parametrize("c", [1 / 3, 3.0, 30.0])
@pytest.mark.parametrize("change", [*CHANGES])
def test_the_answer_stays_as_it_is(change: str, c: float, course: str, moment: str) -> None:
    plain = analysed("mlp", course).verdict
    other = analysed("mlp", course, CHANGES[change], c, moment).verdict
    assert other.answer == plain.answer == course
    for name in ("adaptive_end_over_peak", "adaptive_rise"):
        assert other[name] == pytest.approx(plain[name], rel=1e-5)


@pytest.mark.parametrize("network", ["BatchNorm", "attention"])
def test_it_does_so_for_other_networks(network: str) -> None:
    assert analysed(network, "trapped", output_layer, 3.0, "at the end").verdict.answer == "trapped"


def test_the_figures_beside_it_follow_the_loss() -> None:
    """Raw and relative sharpness grow with the outputs, although what the run has found is as sharp as before."""
    plain = analysed("mlp", "trapped").verdict
    other = analysed("mlp", "trapped", output_layer, 300.0, "at the end").verdict
    for name in ("raw_end_over_peak", "relative_end_over_peak"):
        before, after = plain[name], other[name]
        assert before is not None
        assert after is not None
        assert after > 100 * before
