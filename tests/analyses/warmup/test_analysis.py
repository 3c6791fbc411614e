from __future__ import annotations

import numpy as np
import pytest

from tests.analyses.synthetic import lars_facts, layers, losses, warm
from tests.analyses.warmup.made_runs import FALLING, T, W, grouped, judged
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.warmup.analysis import analyse_warmup
from tvlars_probe.analyses.warmup.thresholds import Thresholds
from tvlars_probe.errors import UserError


def test_a_warm_up_of_layers_already_below_their_settled_ratio_is_redundant() -> None:
    low_early = np.where(np.arange(T) < W, 1.0, 4.0)
    result = judged({"a.weight": low_early, "b.weight": low_early})
    assert result.verdict["redundant_share"] == 1.0
    assert result.warmup_steps == W
    assert result.suggested_steps is None


def test_a_layer_hot_until_step_12_would_take_13_steps_of_warm_up() -> None:
    steady = np.full(T, 4.0)
    hot = np.where(np.arange(T) <= 12, 40.0, 4.0)
    result = judged({"calm.weight": steady, "hot.weight": hot})
    assert result.suggested_steps == 13
    assert result.suggested_epochs == pytest.approx(13 / 5)
    assert result.setting_layers == ("hot.weight",)
    assert result.verdict["hot_share"] == 0.5


def test_a_bias_that_full_rate_overwrites_sets_the_length_although_all_layers_are_redundant() -> None:
    low_early = np.where(np.arange(T) < W, 1.0, 4.0)
    result = judged({"a.weight": low_early}, biases={"a.bias": 3.0})
    assert result.verdict["redundant_share"] == 1.0
    assert result.verdict["overwritten"] == 1
    assert result.verdict["unadapted_step"] == pytest.approx(3.0)
    assert result.verdict["adapted_step"] == pytest.approx(0.001)
    assert result.setting_layers == ("a.bias",)


def test_scaling_is_redundant_in_the_part_of_the_warm_up_in_which_a_layer_is_below_its_settled_ratio() -> None:
    mixed = np.where(np.arange(T) < W // 2, 1.0, np.where(np.arange(T) < W, 6.0, 4.0))
    # Of the first step, at rate 0, nothing is told.
    assert judged({"a.weight": mixed}).verdict["redundant_share"] == pytest.approx((W // 2 - 1) / (W - 1))


def test_a_loss_that_rose_asks_for_as_many_steps_as_it_took_to_recover() -> None:
    steady = {"a.weight": np.full(T, 4.0)}
    rising = FALLING.copy()
    rising[5:9] = 7.0
    harmed = judged(steady, warmup=0, loss=rising)
    assert harmed.early.rise == pytest.approx(7.0 / 2.3)
    assert harmed.suggested_steps == harmed.early.recovered_after == 9
    assert judged(steady, warmup=0).suggested_steps is None


def test_what_counts_as_early_does_not_depend_on_how_long_a_run_goes_on() -> None:
    rising = FALLING.copy()
    rising[11] = 7.0
    steady = {"a.weight": np.full(T, 4.0)}
    frame = layers({"a.weight": np.ones(T)}, {"a.weight": np.full(T, 0.25)}, np.ones(T))
    for length in (30, 50, 100):
        cut = LayerGrid.from_frame(frame[frame["step"] < length])
        result = analyse_warmup(cut, losses(rising[:length]), lars_facts(("a.weight",)))
        assert (result.early.rise, result.early.peak_step) == (pytest.approx(7.0 / 2.3), 11)
    late = FALLING.copy()
    late[25] = 7.0  # the sixth epoch of five steps
    assert judged(steady, warmup=0, loss=late).early.rise == pytest.approx(1.0)
    assert judged(steady, warmup=0, loss=late, steps_per_epoch=6).early.rise == pytest.approx(7.0 / 2.3)
    assert judged(steady, warmup=0, loss=late, steps_per_epoch=None).early.rise == pytest.approx(7.0 / 2.3)


def test_a_run_that_diverges_at_once_is_said_to_have_diverged_however_short_it_is() -> None:
    frame = layers({"a": np.ones(T)}, {"a": np.ones(T)}, np.ones(T))
    result = analyse_warmup(
        LayerGrid.from_frame(frame[frame["step"] < 5]), losses(np.array([2.3, 9.0, np.inf])), lars_facts(("a",))
    )
    assert result.verdict.answer == "diverged"
    assert "not finite at step 2" in result.verdict.reason


def test_a_tensor_with_a_rate_of_its_own_is_measured_by_its_own_peak() -> None:
    """A bias at a hundredth of the rate: a step at its full rate moves it by 0.03 of its norm, not by 3."""
    names = ("a.weight", "a.bias")
    low_early = np.where(np.arange(T) < W, 1.0, 4.0)
    frame = layers(
        {n: np.ones(T) for n in names},
        {"a.weight": 1 / low_early, "a.bias": np.full(T, 3.0)},
        warm(T, W),
        biases=("a.bias",),
    )
    frame.loc[frame["parameter"] == "a.bias", ["lr", "update_norm"]] *= np.float32(0.01)
    result = analyse_warmup(LayerGrid.from_frame(frame), losses(FALLING), lars_facts(names, biases=("a.bias",)))
    assert result.verdict["unadapted_step"] == pytest.approx(0.03)
    assert result.verdict["overwritten"] == 0


@pytest.mark.parametrize("share", [0.01, 0.5, 4.0])
def test_a_tensor_of_another_rate_changes_nothing_of_the_others(share: float) -> None:
    result = grouped({"weight": warm(T, W), "bias": share * warm(T, W)})
    table = result.layers.set_index("parameter")
    assert result.warmup_steps == W
    assert table["peak_lr"].tolist() == pytest.approx([1.0, share])
    assert table["full_rate_step"].tolist() == pytest.approx([0.001, 3 * share])
    assert table["warmup_steps"].tolist() == [W, W]
    assert table["held_back_steps"].tolist() == [W - 1, 0]  # of the first step, at rate 0, nothing is told
    assert (result.verdict["overwritten"] == 1) == (share > 1 / 3)


def test_groups_that_warm_up_differently_have_lengths_of_their_own_and_the_run_has_the_longest() -> None:
    result = grouped({"slow": warm(T, W), "quick": 2 * warm(T, 4), "steady": np.full(T, 0.5)})
    assert result.layers["warmup_steps"].tolist() == [W, 4, 0]
    assert result.layers["held_back_steps"].tolist() == [W - 1, 3, 0]
    assert result.layers["early_steps"].tolist() == [max(W, 25), 25, 25]  # five epochs of five steps
    assert (result.warmup_steps, result.peak_lr) == (W, 1.0)
    unfinished = grouped({"slow": warm(T, 2 * T), "steady": np.ones(T)}, peak_lr=None)
    assert unfinished.warmup_steps is None
    assert "before the learning rate reaches its peak" in unfinished.verdict.reason


def test_a_group_that_joins_late_is_measured_from_there_and_tells_nothing_of_the_beginning() -> None:
    joins = np.where(np.arange(T) < 60, np.nan, np.minimum((np.arange(T) - 59) / 10, 1))
    result = grouped({"first": np.ones(T), "late": joins})
    assert (result.warmup_steps, result.last_early) == (0, 24)
    assert result.layers["warmup_steps"].tolist() == [0, 9]


def test_a_tensor_whose_rate_is_always_zero_is_overwritten_by_no_step_at_full_rate() -> None:
    result = grouped({"weight": warm(T, W), "bias": np.zeros(T)})
    assert result.layers["peak_lr"].tolist() == [1.0, 0.0]
    assert result.layers["full_rate_step"].tolist() == pytest.approx([0.001, np.nan], nan_ok=True)
    assert (result.verdict["overwritten"], result.warmup_steps) == (0, W)


@pytest.mark.parametrize("wrong", [{"early_epochs": float("nan")}, {"hot": -1.0}, {"settled": 2.0}])
def test_lines_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(
        UserError, match=rf"--{next(iter(wrong)).replace('_', '-')} .* is out of range \(allowed: above 0"
    ):
        Thresholds(**wrong)


def test_an_early_gradient_explosion_is_counted() -> None:
    ratio = np.full(T, 4.0)
    ratio[3:7] = 0.04
    assert judged({"a.weight": ratio}, warmup=0).verdict["gradient_explosions"] == 1.0


def test_a_loss_that_is_not_finite_is_told_early_and_long_after() -> None:
    early, late = FALLING.copy(), FALLING.copy()
    early[7:], late[60:] = np.nan, np.nan
    early[7] = late[60] = np.inf
    steady = {"a.weight": np.full(T, 4.0)}
    for loss, step in ((early, 7), (late, 60)):
        for warmup in (0, W):
            verdict = judged(steady, warmup=warmup, loss=loss).verdict
            assert verdict.answer == "diverged"
            assert f"not finite at step {step}" in verdict.reason


def test_a_norm_that_is_not_finite_is_no_loss() -> None:
    finding = {"step": 3, "loss": 1.5, "tensor": "a.weight", "quantity": "grad_norm"}
    steady = {"a.weight": np.full(T, 4.0)}
    assert judged(steady, warmup=0, finding=finding).verdict.answer != "diverged"
    assert judged(steady, warmup=0, finding={**finding, "loss": "nan"}).verdict.answer == "diverged"


def test_a_trace_that_ends_within_the_warm_up_or_is_short_or_empty_says_so() -> None:
    steady = {"a.weight": np.full(T, 4.0)}
    within = judged(steady, warmup=2 * T)
    assert within.verdict.answer == "can't tell"
    assert "before the learning rate reaches its peak" in within.verdict.reason
    frame = layers({"a": np.ones(T)}, {"a": np.ones(T)}, np.ones(T))
    short = analyse_warmup(LayerGrid.from_frame(frame[frame["step"] < 5]), losses(FALLING), lars_facts(("a",)))
    assert "only 5 steps" in short.verdict.reason
    none = analyse_warmup(LayerGrid.from_frame(frame[:0]), losses(FALLING), lars_facts(("a",)))
    assert "no layer was recorded" in none.verdict.reason


def test_the_peak_is_found_although_only_every_third_step_is_recorded() -> None:
    lr = np.interp(np.arange(T), [0, 20, 100], [0, 1, 0])
    frame = layers({"a": np.ones(T)}, {"a": np.ones(T)}, lr)
    result = analyse_warmup(LayerGrid.from_frame(frame[frame["step"] % 3 == 0]), losses(FALLING), lars_facts(("a",)))
    assert result.warmup_steps == 21


def test_thresholds_are_parameters() -> None:
    hot = np.where(np.arange(T) <= 12, 40.0, 4.0)
    frame = layers({"a": np.ones(T)}, {"a": 1 / hot}, warm(T, W))
    result = analyse_warmup(LayerGrid.from_frame(frame), losses(FALLING), lars_facts(("a",)), Thresholds(hot=20.0))
    assert result.verdict["hot_share"] == 0
