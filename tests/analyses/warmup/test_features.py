from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import ETA, lars_facts, layers, losses, warm
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.of_runs import warmup_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.analyses.warmup.analysis import analyse_warmup
from tvlars_probe.analyses.warmup.features import CURVATURE_COLUMNS, EARLY, named_features, warmup_features
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = 100
ONES = np.ones(T)
CURVATURE = pd.DataFrame({name: [] for name in CURVATURE_COLUMNS})


def features(
    weight: dict[str, np.ndarray] | None = None,
    grad: dict[str, np.ndarray] | None = None,
    *,
    loss: np.ndarray = ONES,
    lr: np.ndarray = ONES,
    accuracy: float | None = None,
    curvature: pd.DataFrame = CURVATURE,
    biases: tuple[str, ...] = (),
    **facts: Any,
) -> dict[str, float | None]:
    """Of a LARS run without decay, whose norms, losses and rates are given."""
    weight = weight or {"a.weight": ONES}
    grad = grad or dict.fromkeys(weight, ONES)
    told = lars_facts(tuple(weight), biases=biases, **facts)
    grid, steps = LayerGrid.from_frame(layers(weight, grad, lr, biases=biases)), losses(loss)
    result = analyse_warmup(grid, steps, told)
    return {f.name: f.value for f in warmup_features(grid, steps, result, accuracy=accuracy, curvature=curvature)}


def test_peaks_setbacks_and_jumps_of_a_loss_are_as_planted() -> None:
    loss = np.full(T, 0.5)
    loss[:5] = [2.0, 4.0, 1.0, 3.0, 1.0]
    loss[60] = 6.0
    found = features(loss=loss)
    assert found["early_loss_peak"] == 2.0
    assert found["early_loss_low"] == 0.25
    assert found["early_setback"] == 1.0  # from 2 to 4, and from 1 to 3
    assert found["loss_peak"] == 3.0
    assert found["loss_peak_place"] == pytest.approx(60 / 99)
    assert found["setback"] == 2.75  # from 0.5 to 6
    assert found["loss_jumps"] == 3  # 2 to 4, 1 to 3, 0.5 to 6
    assert found["above_first_loss"] == 0.03
    assert found["late_loss"] == 0.25
    assert found["diverged"] == 0.0
    assert found["diverged_step"] is None


def test_noise_of_a_loss_that_is_all_but_zero_is_no_setback() -> None:
    loss = np.where(np.arange(T) < 10, 2.0, np.where(np.arange(T) % 2, 1e-6, 1e-3))
    found = features(loss=loss)
    assert found["setback"] == pytest.approx(0.0, abs=1e-3)
    assert found["loss_jumps"] == 0


def test_a_run_that_diverged_is_told_from_the_manifest_where_the_table_holds_null() -> None:
    loss = np.append(np.linspace(2.0, 1.0, 30), np.nan)
    short = {"a.weight": np.ones(31)}
    found = features(short, short, loss=loss, lr=np.ones(31), status="diverged", finding={"step": 30, "loss": "nan"})
    assert found["diverged"] == 1.0
    assert found["diverged_step"] == 30
    assert found["loss_peak"] == math.inf
    assert found["early_loss_peak"] == 1.0


def test_a_first_loss_that_is_infinite_is_divergence_and_nothing_to_measure_by() -> None:
    found = features(loss=np.where(np.arange(T) < 1, np.inf, 1.0))
    assert (found["diverged"], found["diverged_step"]) == (1.0, 0)
    assert found["loss_peak"] is None


def test_what_was_learned_is_told_beside_guessing() -> None:
    found = features(loss=np.full(T, math.log(10) / 2), accuracy=55.0, classes=10)
    assert found["late_loss_over_chance"] == pytest.approx(0.5)
    assert found["accuracy_above_chance"] == pytest.approx(0.5)
    dead = features(loss=np.full(T, math.log(4)), accuracy=25.0, classes=4)
    assert dead["late_loss_over_chance"] == pytest.approx(1.0)
    assert dead["accuracy_above_chance"] == pytest.approx(0.0)
    assert features(accuracy=55.0)["accuracy_above_chance"] is None
    assert features(accuracy=55.0, classes=10, phase="pretrain")["late_loss_over_chance"] is None


def test_norms_of_the_whole_model_are_those_of_the_vectors_of_its_tensors() -> None:
    shape = np.where(np.arange(T) == 3, 4.0, np.where(np.arange(T) < 50, 1.0, 0.5))
    grad = {"a.weight": 3 * shape, "b.weight": 4 * shape}
    weight = {"a.weight": np.linspace(3, 6, T), "b.weight": np.linspace(4, 8, T)}
    found = features(weight, grad)
    assert found["early_grad_norm_peak"] == pytest.approx(4.0)
    assert found["grad_norm_peak"] == pytest.approx(4.0)
    assert found["late_grad_norm"] == pytest.approx(0.5)
    # ‖w‖ goes from 5 to 10; the last quarter's middle is at row 87.
    assert found["weight_norm_peak"] == pytest.approx(2.0)
    assert found["late_weight_norm"] == pytest.approx(1 + 87 / 99)
    assert found["early_weight_norm_peak"] == pytest.approx(1 + (EARLY - 1) / 99)


def test_update_ratios_are_of_the_weights_alone_and_begin_with_the_first_that_moves() -> None:
    # LARS moves a weight by lr·η of its norm, and a bias here by its whole gradient.
    found = features(
        {"a.weight": ONES, "a.bias": ONES}, {"a.weight": ONES, "a.bias": 7 * ONES}, lr=warm(T, 10), biases=("a.bias",)
    )
    assert found["first_update_ratio"] == pytest.approx(0.1 * ETA, rel=1e-5)
    assert found["early_update_ratio"] == pytest.approx(ETA, rel=1e-5)
    assert found["widest_early_update_ratio"] == pytest.approx(ETA, rel=1e-5)
    assert found["late_update_ratio"] == pytest.approx(ETA, rel=1e-5)
    assert found["update_ratio_peak"] == pytest.approx(ETA, rel=1e-5)
    # At the peak rate an early step would be as large, although the warm-up held it back.
    assert found["full_rate_step"] == pytest.approx(ETA, rel=1e-5)
    assert found["vector_full_rate_step"] == pytest.approx(7.0, rel=1e-5)
    assert found["warmup_steps"] == 10


def test_trust_ratios_that_fall_early_are_seen_in_their_layers() -> None:
    falling = np.where(np.arange(T) < EARLY - 1, 1.0, 4.0)  # of the gradient: the ratio falls to a quarter
    found = features(
        {"hot.weight": ONES, "calm.weight": ONES, "third.weight": ONES},
        {"hot.weight": falling, "calm.weight": 2 * ONES, "third.weight": 2 * ONES},
    )
    assert found["early_trust_ratio"] == pytest.approx(1.0, rel=1e-5)
    assert found["hottest_trust_ratio"] == pytest.approx(4.0, rel=1e-5)
    assert found["early_trust_ratio_change"] == pytest.approx(1.0, rel=1e-5)
    assert found["trust_ratio_spread"] == pytest.approx(2.0, rel=1e-5)
    assert found["hot_share"] == pytest.approx(1 / 3)


def test_the_peak_rate_is_set_beside_the_early_critical_rates() -> None:
    rows = pd.DataFrame(
        [(0, "critical_sharpness", 4.0), (1, "critical_sharpness", 8.0), (1, "eigenvalue", 99.0),
         (EARLY, "critical_sharpness", 99.0)],
        columns=list(CURVATURE_COLUMNS),
    )  # fmt: skip
    # The rates at which the loss would have risen were 2/4 and 2/8; the peak rate is 1.
    assert features(curvature=rows)["peak_over_critical_rate"] == pytest.approx(3.0)
    assert features()["peak_over_critical_rate"] is None


def test_other_units_of_loss_and_norms_change_nothing() -> None:
    rng = np.random.default_rng(0)
    weight = {name: rng.uniform(1, 2, T) for name in ("a.weight", "b.weight")}
    grad = {name: rng.uniform(1, 2, T) for name in weight}
    loss = rng.uniform(1, 2, T)
    plain = features(weight, grad, loss=loss)
    scaled = features({n: 8 * w for n, w in weight.items()}, {n: 1e6 * g for n, g in grad.items()}, loss=32 * loss)
    told = {name: value for name, value in plain.items() if value is not None}
    assert {name: value for name, value in scaled.items() if value is not None} == pytest.approx(told, rel=1e-5)


def test_a_trace_without_rows_has_the_features_names_and_no_value() -> None:
    found = named_features()
    assert [f.name for f in found] == list(features())
    assert {f.name: f.value for f in found if f.value not in (None, 0)} == {}
    assert len({f.name for f in found}) == len({f.meaning for f in found}) == len(found)
    assert {f.unit for f in found} == {"1", "share", "step"}


def test_a_run_of_train_has_all_features_of_its_kind(trained: Callable[..., Path]) -> None:
    source = Source(open_run(trained("lars")))
    found = {f.name: f.value for f in warmup_of(source)[0].features}
    assert source.facts.classes == 10
    missing = {name for name, value in found.items() if value is None}
    assert missing == {"diverged_step", "peak_over_critical_rate", "redundant_share"}
    plain = {f.name: f.value for f in warmup_of(Source(open_run(trained("sgd"))))[0].features}
    # SGD has no trust ratios.
    assert {name for name, value in plain.items() if value is None} - missing == {
        "early_trust_ratio", "hottest_trust_ratio", "early_trust_ratio_change", "trust_ratio_spread",
    }  # fmt: skip
