"""The noise scale of planted rows: its level, what isn't known, and where a batch stands."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.analyses.batches.noise_rows import estimates, probe, rows
from tvlars_probe.analyses.batches.noise_of_tensors import COLUMNS, TensorSums, windows_of
from tvlars_probe.analyses.batches.noise_scale import (
    LAYER_COLUMNS,
    NoiseScale,
    analyse_noise,
    averaged,
    block_length,
    window_of,
)
from tvlars_probe.analyses.batches.noise_verdict import interval_text, side_of
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.errors import UserError

NO_LAYERS = pd.DataFrame(columns=list(LAYER_COLUMNS))
SGD = {"optimizer": "SGD", "lr": 0.1, "description": {"optimizer": "SGD", "module": "torch"}, "parameters": 4}


def analysed(*frames: pd.DataFrame, groups: tuple[dict[str, Any], ...] = (SGD,), **settings: Any) -> NoiseScale:
    facts = RunFacts(name="made", batch_size=64, groups=groups)
    return analyse_noise(pd.concat(frames, ignore_index=True), NO_LAYERS, facts, **settings)


CASES = {
    "many dimensions": {"steps": 100, "dimensions": 60},
    "three dimensions, two pieces": {"steps": 60, "dimensions": 3, "pieces": 2},
    "|G|² falls to a ninth": {"steps": 200, "signal": np.linspace(1.8, 0.2, 200)},
    "30 steps": {"steps": 30, "dimensions": 40},
    "30 steps, neighbours correlated by a half": {"steps": 30, "kept": 0.5, "dimensions": 40},
    "100 steps, neighbours correlated by a half": {"steps": 100, "kept": 0.5, "dimensions": 40},
    "400 steps, neighbours correlated by a half": {"steps": 400, "kept": 0.5, "dimensions": 40},
    "ten steps": {"steps": 10, "signal": 4.0},
}


@pytest.mark.parametrize("case", CASES)
def test_the_interval_holds_the_truth_in_95_percent_of_draws(case: str) -> None:
    rng, held, draws = np.random.default_rng(7), 0, 1000
    settings = CASES[case]
    mean = float(np.mean(settings.get("signal", 1.0)))
    if "kept" in settings:
        # Correlated noise has the same covariance, but each step's estimate is as it is of one step.
        draws = 400
    for _ in range(draws):
        _, _, ratio = averaged(*estimates(rng, **settings))
        held += ratio.low <= 100 / mean <= ratio.high
    assert 0.92 <= held / draws <= 0.98


def test_blocks_have_four_steps_where_that_leaves_seven_and_twenty_blocks_at_most() -> None:
    assert [block_length(steps) for steps in (1, 10, 14, 27, 28, 30, 80, 100, 1000)] == [1, 1, 2, 3, 4, 4, 4, 5, 50]


def test_without_a_signal_there_is_no_upper_end() -> None:
    rng, opened = np.random.default_rng(3), 0
    for _ in range(200):
        _, _, ratio = averaged(*estimates(rng, 50, signal=0.0))
        opened += ratio.is_open and math.isnan(ratio.value)
    assert opened >= 0.92 * 200


def test_the_means_are_divided_and_not_the_ratios_averaged() -> None:
    signal, noise = estimates(np.random.default_rng(0), 90, dimensions=40)
    result = analysed(rows(signal, noise), window=30)
    assert result.window == 30
    last = result.curve.iloc[-1]
    assert (last["first_step"], last["last_step"], last["rows"]) == (60, 89, 30)
    assert last["gradient_square"] == pytest.approx(signal[60:].mean())
    assert last["simple_batch"] == pytest.approx(noise[60:].mean() / signal[60:].mean())
    assert len(result.curve) == 61  # whole windows only


def test_negative_estimates_count_as_they_are() -> None:
    signal, noise = estimates(np.random.default_rng(2), 60, dimensions=40)
    assert (signal < 0).any()
    assert analysed(rows(signal, noise)).curve["gradient_square"].iloc[0] == pytest.approx(signal[:30].mean())
    below = analysed(rows(-np.abs(signal), noise))
    assert below.curve["simple_batch"].isna().all()
    assert below.curve["is_open"].all()


def test_one_row_gives_no_interval_and_no_verdict() -> None:
    result = analysed(rows([1.0], [100.0]))
    assert (len(result.curve), result.window) == (1, 1)
    assert math.isnan(result.curve["simple_batch"].iloc[0])
    assert result.verdict.answer == "can't tell"
    assert "the interval is unknown" in result.verdict.reason


def test_no_rows_say_how_to_record_them() -> None:
    result = analysed(rows([], []))
    assert (len(result.curve), result.last) == (0, None)
    assert "train --noise" in result.verdict.reason


def test_rows_without_figures_are_left_out_and_counted() -> None:
    signal, noise = estimates(np.random.default_rng(0), 40)
    signal[3], noise[5] = np.nan, np.inf
    result = analysed(rows(signal, noise, unit=None, samples=None))
    assert result.doubts == ("left out, as without finite figures: 2 rows",)
    assert (result.curve["rows"].max(), result.batch) == (30, 64.0)
    nulls = rows(signal, noise).assign(gradient_square=None)
    assert len(analysed(nulls).curve) == 0


@pytest.mark.parametrize(("noise", "answer"), [(3000.0, "below"), (64.0, "at"), (4.0, "beyond")])
def test_a_batch_is_below_at_or_beyond_the_scale(noise: float, answer: str) -> None:
    signal, trace = estimates(np.random.default_rng(4), 600, noise=noise, dimensions=200)
    result = analysed(rows(signal, trace))
    assert result.verdict.answer == answer
    assert result.verdict.reason.startswith(
        f"a batch of 64 samples is {answer} what the gradient noise supports: B_sim"
    )
    assert "95 %" in result.verdict.reason
    assert result.verdict["batch"] == 64


def test_of_probes_in_one_step_the_surest_one_decides_and_not_the_order_of_files() -> None:
    at = pd.Timestamp("2026-01-01")
    small = probe(50, 0.1, 30.0, (0.2, 9.0), samples=100, created_at=at + pd.Timedelta("2h"))
    large = probe(50, 1.0, 30.0, (0.05, 1.0), samples=1000, created_at=at)
    again = probe(50, 1.0, 31.0, (0.05, 1.0), samples=1000, created_at=at + pd.Timedelta("1h"))
    test = probe(50, 1.0, 500.0, (0.05, 1.0), samples=5000, split="test", created_at=at)
    for order in itertools.permutations([small, large, again, test]):
        assert analysed(*order).last["simple_batch"] == pytest.approx(31)


def test_a_probe_stands_by_itself_and_decides_where_it_is_later() -> None:
    signal, noise = estimates(np.random.default_rng(4), 100, noise=3000.0, dimensions=200)
    result = analysed(rows(signal, noise), probe(100, 2.0, 10.0, (0.1, 0.5)))
    assert result.verdict.answer == "beyond"
    assert "at step 100 (a probe on train data, BatchNorm mode eval)" in result.verdict.reason
    point = result.curve.iloc[-1]
    error = 5 * math.hypot(0.1 / 2, 0.5 / 10)
    assert (point["low"], point["high"]) == pytest.approx((5 - 1.96 * error, 5 + 1.96 * error), rel=0.03)
    assert result.batch == 64  # the sample's size is no batch


def test_a_probe_without_errors_has_no_interval() -> None:
    result = analysed(probe(3, 2.0, 10.0, (math.nan, math.nan)))
    assert result.verdict.answer == "can't tell"


def test_a_probe_apart_from_training_is_a_doubt() -> None:
    signal, noise = estimates(np.random.default_rng(4), 100, noise=3000.0, dimensions=200)
    (doubt,) = analysed(rows(signal, noise), probe(50, 2.0, 10.0, (0.1, 0.5))).doubts
    assert "the probe's interval of B_simple lies apart from that of training" in doubt


def test_tokens_are_the_unit_where_rows_count_them() -> None:
    signal, noise = estimates(np.random.default_rng(4), 300, noise=9.0, dimensions=200)
    result = analysed(rows(signal, noise, unit="tokens", samples=5000))
    assert (result.unit, result.batch, result.verdict.answer) == ("tokens", 5000.0, "beyond")
    assert "5,000 tokens" in result.verdict.reason
    mixed = analysed(rows(signal, noise, unit="tokens", samples=5000), probe(1, 1.0, 1.0, (0.1, 0.1)))
    assert mixed.doubts == ("left out, as not counted in tokens: 1 row",)


@pytest.mark.parametrize(
    ("preconditioner", "scaling", "words"),
    [
        ({"kind": "sign"}, {}, "takes signs"),
        ({"kind": "matrix"}, {}, "makes matrices orthogonal"),
        ({"kind": "adam"}, {}, "divides by a root of squared gradients"),
        ({}, {"kind": "trust-ratio"}, "scales each tensor by a norm"),
    ],
    ids=["sign", "matrix", "adam", "trust ratio"],
)
def test_an_optimizer_under_which_another_norm_counts_is_a_doubt(
    preconditioner: dict[str, Any], scaling: dict[str, Any], words: str
) -> None:
    described = {"optimizer": "X", "preconditioner": preconditioner, "scaling": scaling}
    signal, noise = estimates(np.random.default_rng(4), 40)
    (doubt,) = analysed(rows(signal, noise), groups=({"optimizer": "X", "description": described},)).doubts
    assert doubt.startswith(f"X {words}: B_simple assumes SGD")
    assert "isn't on record" in analysed(rows(signal, noise), groups=()).doubts[0]


@pytest.mark.parametrize(
    ("figures", "side", "text"),
    [
        ((61.0, 52.0, 73.0), "beyond", "61 (95 %: 52 to 73)"),
        ((900.0, 700.0, 1200.0), "below", "900 (95 %: 700 to 1,200)"),
        ((500.0, 400.0, 600.0), "at", "500 (95 %: 400 to 600)"),
        ((500.0, 100.0, 5000.0), "can't tell", "500 (95 %: 100 to 5,000)"),
        ((math.nan, 700.0, math.inf), "below", "at least 700 (95 %)"),
        ((900.0, 700.0, math.inf), "below", "900 (95 %: 700 or more)"),
        ((math.nan, 20.0, math.inf), "can't tell", "at least 20 (95 %)"),
        ((math.nan, 0.0, math.inf), "can't tell", "unknown"),
        ((math.nan, 0.0, 90.0), "beyond", "at most 90 (95 %)"),
        ((math.nan, math.nan, math.nan), "can't tell", "unknown"),
    ],
)
def test_sides_and_words_of_an_interval(figures: tuple[float, float, float], side: str, text: str) -> None:
    assert side_of(512.0, *figures[1:]) == side
    assert interval_text(*figures) == text


def test_a_window_is_a_tenth_of_the_steps_within_bounds() -> None:
    assert [window_of(n) for n in (0, 7, 100, 5000, 10**6)] == [0, 7, 30, 500, 1000]
    assert window_of(10, 50) == 10
    with pytest.raises(UserError, match="--window 1 is too small"):
        window_of(10, 1)


def tensor_rows(step: Any, scope: Any, x: Any, y: Any, **further: Any) -> pa.RecordBatch:
    told = {"phase": "train", "source": "training", "scope_kind": "tensor", "gradient_square_error": np.nan}
    told |= {"split": None, "samples": 64, "created_at": pd.NaT}
    frame = pd.DataFrame({"step": step, "scope": scope, "gradient_square": x, "noise_trace": y})
    frame = frame.assign(**{**told, "noise_trace_error": np.nan, **further})
    return pa.RecordBatch.from_pandas(frame[list(COLUMNS)], preserve_index=False)


def test_windows_of_tensors_are_those_of_plain_means() -> None:
    rng = np.random.default_rng(0)
    steps = np.repeat(np.arange(90), 2)
    names = np.tile(["a", "b"], 90)
    x, y = rng.normal(1, 0.3, 180), rng.normal(50, 5, 180)
    firsts = windows_of(np.arange(90))
    assert firsts.tolist() == [0, 30, 60]
    pieces = [tensor_rows(steps[part], names[part], x[part], y[part]) for part in (slice(0, 77), slice(77, 180))]
    whole = tensor_rows([5], ["all"], [1e9], [1e9], scope_kind="all")
    other = tensor_rows([5], ["a"], [1e9], [1e9], phase="linear")
    frame = TensorSums(firsts, "train").add(iter([*pieces, whole, other])).frame()
    assert len(frame) == 6
    for row in frame.itertuples():
        mine = (names == row.parameter) & (steps >= row.first_step) & (steps <= row.last_step)
        assert (row.rows, mine.sum()) == (30, 30)
        assert row.simple_batch == pytest.approx(y[mine].mean() / x[mine].mean())
        assert row.low < row.simple_batch < row.high


def test_steps_left_over_belong_to_the_last_window() -> None:
    assert windows_of(np.arange(100)).tolist() == [0, 30, 60]
    assert windows_of(np.arange(7)).tolist() == [0]
    assert len(windows_of(np.arange(50_000), 10)) <= 60
    assert len(windows_of(np.empty(0, np.int64))) == 0


def test_tensors_of_a_probe_have_their_own_errors() -> None:
    frame = TensorSums(windows_of(np.empty(0, np.int64))).add(iter([
        tensor_rows([7], ["a"], [2.0], [10.0], source="probe", gradient_square_error=0.1, noise_trace_error=0.5),
    ])).frame()  # fmt: skip
    (row,) = frame.to_dict("records")
    assert (row["source"], row["step"], row["simple_batch"]) == ("probe", 7, 5.0)
    assert row["high"] < 6


def test_of_a_tensors_probes_in_one_step_the_surest_stands_last() -> None:
    errors = {"source": "probe", "gradient_square_error": 0.1, "noise_trace_error": 0.5}
    large = tensor_rows([7], ["a"], [2.0], [10.0], samples=1000, **errors)
    small = tensor_rows([7], ["a"], [2.0], [90.0], samples=100, **errors)
    for order in ([large, small], [small, large]):
        frame = TensorSums(windows_of(np.empty(0, np.int64))).add(iter(order)).frame()
        assert frame["simple_batch"].tolist() == [45.0, 5.0]
