from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tvlars_probe.analyses.correlation import correlate
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.minimizer import COLUMNS, SPECTRUM_COLUMNS, Minimizer, SharpnessRule, analyse_minimizer
from tvlars_probe.errors import UserError

STEPS = np.arange(0, 101, 10)
NO_SPECTRUM = pd.DataFrame(columns=list(SPECTRUM_COLUMNS))


def rows(operator: str, values: Any, *, bn_mode: str = "train", steps: Any = STEPS, **further: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"step": steps, "value": np.asarray(values, float)})
    told = {
        "measurement_id": "m", "phase": "train", "measure": "eigenvalue", "operator": operator, "scope": "all",
        "scope_kind": "all", "rank": 1, "error": 1e-3, "converged": True, "split": "train", "bn_mode": bn_mode,
        "samples": 64, "limit": np.nan,
    }  # fmt: skip
    return frame.assign(**{**told, **further})[list(COLUMNS)]


def analysed(*frames: pd.DataFrame, name: str = "made", **settings: Any) -> Minimizer:
    joined = pd.concat(frames, ignore_index=True)
    categories = {name: joined[name].astype("category") for name in ("operator", "bn_mode", "scope", "measure")}
    return analyse_minimizer(joined.assign(**categories), NO_SPECTRUM, RunFacts(name=name), **settings)


PEAK = np.interp(STEPS, [0, 20, 40, 100], [1, 100, 10, 5])
HELD = np.interp(STEPS, [0, 20, 40, 100], [1, 100, 90, 80])


def test_adaptive_sharpness_that_rises_and_falls_to_a_twentieth_has_escaped() -> None:
    result = analysed(rows("hessian", PEAK), rows("relative", HELD), rows("adaptive", PEAK * 7))
    assert result.verdict.answer == "escaped"
    summary = result.summary.set_index("operator")
    assert summary.loc["hessian", "peak_step"] == 20
    assert summary.loc["hessian", "early_peak"] == 100
    assert summary.loc["hessian", "end_over_peak"] == pytest.approx(np.median(PEAK[-3:]) / 100)
    assert summary["state"].to_dict() == {"adaptive": "escaped", "hessian": "can't tell", "relative": "can't tell"}
    assert result.verdict.figures[0].name == "adaptive_end_over_peak"
    assert result.verdict["adaptive_rise"] == 100
    assert result.verdict["relative_early_peak"] == 100
    assert summary.loc["adaptive", "trapped_steps"] == 10  # the value at step 30 is still above half of the peak


def test_adaptive_sharpness_that_stays_at_four_fifths_is_trapped() -> None:
    result = analysed(rows("hessian", HELD), rows("adaptive", HELD))
    assert result.verdict.answer == "trapped"
    assert result.summary["trapped_steps"].tolist() == [80, 80]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (
            [rows("hessian", PEAK), rows("relative", PEAK)],
            "only hessian and relative sharpness is on record, which a change of scale moves: tvlars-probe sharpness "
            "RUN --operator adaptive --checkpoint all --bn train tells",
        ),
        ([rows("adaptive", [1, 2], steps=[0, 10])], "it takes 5 measurements"),
        ([rows("adaptive", PEAK, error=0.6 * PEAK)], "errors leave it open"),
        ([rows("hessian", [], steps=[])], "no sharpness is on record"),
    ],
    ids=["others alone", "two measurements", "large errors", "nothing"],
)
def test_it_says_when_it_cannot_be_told(frames: list[pd.DataFrame], reason: str) -> None:
    verdict = analysed(*frames).verdict
    assert verdict.answer == "can't tell"
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([9, 5, 3, 2, 2.2, 3, 3.5, 3.2, 3, 3, 3], "never sharp"),
        ([9, 5, 3, 2, 2.2, 5, 5, 4, 4, 4, 4], "trapped"),
        ([9, 5, 3, 2, 2.2, 5, 5, 4, 2, 2, 2], "escaped"),
        ([2, 2, 2, 2, 2, 2, 2, 2, 2, 5, 5], "trapped"),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 0], "never sharp"),
    ],
    ids=["a small rise", "held", "left", "late", "falling"],
)
def test_the_fall_from_the_initial_weights_is_no_sharp_phase(values: list[float], answer: str) -> None:
    assert analysed(rows("adaptive", values)).verdict.answer == answer


def test_a_run_that_diverged_is_in_no_minimum() -> None:
    facts = RunFacts(name="made", status="diverged")
    verdict = analyse_minimizer(rows("adaptive", HELD), NO_SPECTRUM, facts).verdict
    assert (verdict.answer, verdict.reason) == ("can't tell", "the run diverged: it is in no minimum.")


@pytest.mark.parametrize(("accuracy", "answer"), [(12.0, "can't tell"), (30.0, "trapped"), (None, "trapped")])
def test_a_run_that_has_learned_next_to_nothing_is_in_no_minimum(accuracy: float | None, answer: str) -> None:
    facts = RunFacts(name="made", classes=10)
    verdict = analyse_minimizer(rows("adaptive", HELD), NO_SPECTRUM, facts, accuracy=accuracy).verdict
    assert verdict.answer == answer
    assert ("test accuracy 12 %, by chance 10 %" in verdict.reason) == (answer == "can't tell")


def test_effective_sharpness_is_put_beside_its_limit_and_decides_nothing() -> None:
    effective = rows("effective", np.full(11, 5.0), limit=3.8)
    effective.loc[:2, "value"] = 1.0
    result = analysed(rows("adaptive", PEAK), effective)
    assert result.verdict.answer == "escaped"
    assert result.summary.set_index("operator").loc["effective", "beyond_limit"] == pytest.approx(8 / 11)


def test_batch_norm_modes_are_never_joined() -> None:
    both = [rows("hessian", PEAK), rows("relative", PEAK), rows("hessian", [500.0], bn_mode="eval", steps=[100])]
    result = analysed(*both)
    assert (result.bn_mode, result.other_modes) == ("train", (("eval", "train"),))
    assert result.curves["value"].max() == 100
    other = analysed(*both, bn_mode="eval")
    assert other.curves["value"].tolist() == [500.0]
    deciding = analysed(*both, rows("adaptive", [1.0], bn_mode="eval", steps=[100]))
    assert (deciding.bn_mode, deciding.other_modes) == ("eval", (("train", "train"),))
    assert "it takes 5 measurements of adaptive sharpness" in deciding.verdict.reason


def draws_of(operator: str, values: Any, spread: float) -> pd.DataFrame:
    """Two draws whose mean is ``values``."""
    each = [
        rows(operator, np.asarray(values) + side * spread).assign(draw=draw, sample_id=f"s{draw}")
        for draw, side in enumerate((-1, 1))
    ]
    return pd.concat(each).sort_values("step", kind="stable")


def test_over_draws_a_curve_is_their_mean_with_its_standard_error() -> None:
    result = analysed(draws_of("hessian", PEAK, 0.1), draws_of("adaptive", PEAK, 0.01))
    assert result.verdict.answer == "escaped"
    assert result.verdict.reason.endswith(", mean of 2 samples of 64.")
    assert result.on == "mean of 2 samples of 64"
    hessian = result.curves[result.curves["operator"] == "hessian"]
    assert hessian["value"].tolist() == pytest.approx(PEAK.tolist())
    assert hessian["standard_error"].tolist() == pytest.approx([0.1] * 11)  # of two values it is half their distance
    assert result.summary["measurements"].tolist() == [11, 11]


def test_what_is_said_is_said_of_this_sample_where_no_draws_were_made() -> None:
    result = analysed(rows("hessian", HELD), rows("adaptive", HELD))
    assert result.verdict.reason.endswith(", on this sample of 64.")
    other = analysed(rows("hessian", PEAK), rows("adaptive", HELD, samples=32))
    assert other.verdict.reason.endswith(", on this sample of 32.")
    assert other.on == "adaptive on this sample of 32, hessian on this sample of 64"
    assert analysed(rows("hessian", [], steps=[])).on == ""


def test_a_later_figure_on_another_sample_does_not_end_the_curve() -> None:
    late = rows("hessian", [1e6], steps=[110], samples=1000)
    result = analysed(rows("hessian", PEAK), rows("relative", PEAK), late)
    assert result.summary.set_index("operator").loc["hessian", "end"] == pytest.approx(np.median(PEAK[-3:]))
    (left,) = result.samples[~result.samples["is_curve"]].to_dict("records")
    assert (left["samples"], left["last_step"], left["value"]) == (1000, 110, 1e6)


def test_sharpness_of_data_that_belongs_to_no_part_is_a_curve_too() -> None:
    result = analysed(rows("hessian", PEAK, split=None), rows("adaptive", PEAK, split=None))
    assert (result.verdict.answer, result.split) == ("escaped", "given")


def test_the_line_of_escape_is_a_parameter() -> None:
    frames = [rows("hessian", HELD), rows("adaptive", HELD)]
    assert analysed(*frames, rule=SharpnessRule(escaped=0.95)).verdict.answer == "escaped"


def test_trapped_steps_are_those_between_measurements_at_or_above_the_line() -> None:
    steps = np.arange(0, 60, 10)
    dips, returns = ([10, 1, 1, 1, 9, 1], [1, 10, 9, 1, 9, 9])
    summary = analysed(rows("hessian", dips, steps=steps), rows("relative", returns, steps=steps)).summary
    assert summary["trapped_steps"].tolist() == [0, 20]


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"escaped": -3.0}, "--escaped -3 is outside its range (allowed: a share above 0, up to 1)"),
        ({"escaped": np.nan}, "--escaped nan"),
        ({"escaped": 1.5}, "--escaped 1.5"),
        ({"early": -0.1}, "early=-0.1 is outside its range (allowed: a share from 0 to 1)"),
        ({"late": np.inf}, "late=inf"),
        ({"least": 0}, "least=0 is too few (allowed: 1 or more measurements)"),
    ],
    ids=str,
)
def test_thresholds_outside_their_range_are_refused(thresholds: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        SharpnessRule(**thresholds)


def runs_with(gaps: Any) -> list[tuple[Minimizer, pd.DataFrame]]:
    made = []
    for index, gap in enumerate(gaps):
        result = analysed(rows("hessian", PEAK * (index + 1)), rows("relative", PEAK / (index + 1)), name=f"r{index}")
        made.append((result, pd.DataFrame({"train_eval_acc1": [90.0, 99.0], "test_acc1": [50.0, 99.0 - gap]})))
    return made


def test_ends_that_order_runs_as_their_gap_does_correlate_fully() -> None:
    found = correlate(runs_with(np.arange(10) / 4))
    assert found.verdict.answer == "yes"
    table = found.table.set_index(["measure", "outcome"])
    assert table.loc[("hessian", "generalisation_gap"), "rho"] == pytest.approx(1)
    assert table.loc[("relative", "generalisation_gap"), "rho"] == pytest.approx(-1)
    assert found.runs["generalisation_gap"].tolist() == pytest.approx((np.arange(10) / 4).tolist())


def test_few_runs_are_too_few_to_say_anything() -> None:
    found = correlate(runs_with([1, 2, 3]))
    assert found.verdict.answer == "can't tell"
    told = (
        "3 runs are too few to say anything (at least 8): ρ = 1.00, by chance as far from zero in 33.3 % of all orders."
    )
    assert found.verdict.reason == told
    assert found.table["too_few"].all()
    assert found.table[["low", "high"]].isna().all(axis=None)
    assert {*found.table["why_no_interval"]} == {"3 runs are too few (at least 8)"}
    assert found.verdict["low"] is not None
    assert np.isnan(found.verdict["low"])


def test_perfect_order_convinces_only_where_chance_rarely_gives_it() -> None:
    ordered = correlate(runs_with(np.arange(8.0)))
    assert ordered.verdict.answer == "yes"
    assert "ρ = 1.00 over 8 runs, by chance as far from zero in 0.05 % of all orders" in ordered.verdict.reason
    tied = correlate(runs_with([0.0] * 7 + [1.0]))  # the one may stand at either end of eight places
    assert tied.verdict.answer == "can't tell"
    share = re.search(r"but by chance as far from zero in (\S+) % of all orders", tied.verdict.reason)
    assert share is not None
    assert float(share[1]) == pytest.approx(25, abs=4)
    same = correlate(runs_with([2.0] * 8))
    assert same.verdict.answer == "can't tell"
    assert same.verdict.reason == "there is no ρ over 8 runs: one of the two is the same in all runs."


@pytest.mark.parametrize("count", [1, 11])
def test_sharpness_that_is_never_a_number_says_nothing(count: int) -> None:
    result = analysed(*(rows(name, [np.nan] * count, steps=STEPS[:count]) for name in ("hessian", "adaptive")))
    assert result.verdict.answer == "can't tell"
    assert result.summary["end"].isna().all()


def test_the_batch_norm_mode_of_most_runs_is_compared_wherever_the_others_stand() -> None:
    epochs = pd.DataFrame({"epoch": [0], "test_acc1": [80.0], "train_eval_acc1": [90.0]})
    odd = (analysed(rows("hessian", PEAK, bn_mode="eval"), name="odd"), epochs)
    made = [(analysed(rows("hessian", PEAK), name=f"run{index}"), epochs) for index in range(2)]
    found = correlate([odd, *made])
    assert (found.bn_mode, found.left_out) == ("train", ("odd (BatchNorm mode eval on train data)",))
    assert correlate([odd, made[0]]).bn_mode == "eval"  # of two that are as many it is the first
    sized = (analysed(rows("hessian", PEAK, samples=1000), name="sized"), epochs)
    assert correlate([sized, *made]).left_out == ("sized (on this sample of 1,000)",)


def test_runs_measured_in_another_batch_norm_mode_or_on_other_data_are_left_out_by_name() -> None:
    made = runs_with(np.arange(10) / 4)
    epochs = made[0][1]
    strange = [
        (analysed(rows("hessian", PEAK * 1e6, bn_mode="eval"), name="evaluated"), epochs),
        (analysed(rows("hessian", PEAK * 1e6, split="test"), name="tested"), epochs),
    ]
    sized = (analysed(rows("hessian", PEAK * 1e6, samples=1000), name="sized"), epochs)
    assert correlate([*made, sized]).left_out == ("sized (on this sample of 1,000)",)
    unmeasured = (analysed(rows("hessian", [], steps=[]), name="unmeasured"), epochs)
    asked = (analysed(rows("hessian", PEAK), bn_mode="eval", name="asked"), epochs)
    assert correlate([asked, strange[0]]).runs["run"].tolist() == ["asked", "evaluated"]
    found, alone = correlate([unmeasured, *made, *strange]), correlate(made)
    assert (found.bn_mode, found.split) == ("train", "train")
    assert found.left_out == (
        "evaluated (BatchNorm mode eval on train data)",
        "tested (BatchNorm mode train on test data)",
    )
    assert found.verdict.reason == f"{alone.verdict.reason} Left out, measured otherwise: 2 of 13 runs, " + (
        " and ".join(found.left_out) + "."
    )
    pd.testing.assert_frame_equal(found.table, alone.table)
    assert found.runs["run"].tolist() == ["unmeasured", *(f"r{i}" for i in range(10))]
