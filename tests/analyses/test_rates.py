from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.analyses.synthetic import ETA, lars_facts, layers
from tvlars_probe.analyses.grid import LayerGrid, norm_ratio
from tvlars_probe.analyses.rates import COLUMNS, TERMS, decompose
from tvlars_probe.analyses.source import Source
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("schedule", ["none", "cosine", "lars-warm"])
@pytest.mark.parametrize("optimizer", ["lars", "lamb", "tvlars"])
def test_the_terms_sum_to_the_log_of_the_recorded_rate(
    optimizer: str, schedule: str, trained: Callable[..., Path]
) -> None:
    run = open_run(trained(optimizer, schedule))
    source = Source(run)
    facts = source.facts
    split = decompose(source.layers(COLUMNS), facts)
    recorded = run.layers(["step", "parameter", "lr", "trust_ratio"])
    rate = (recorded["lr"].astype(float) * recorded["trust_ratio"].astype(float)).to_numpy()
    total = sum(split.terms[name] for name in TERMS)
    ours = [total[np.searchsorted(split.steps, s), split.parameters.index(p)]
            for s, p in zip(recorded["step"], recorded["parameter"].astype(str), strict=True)]  # fmt: skip
    told = rate > 0
    assert np.abs(np.array(ours)[told] - np.log(rate[told])).max() < 1e-5
    assert split.remainder < 1e-5
    assert split.vanished == (rate == 0).sum()


@pytest.mark.parametrize("settings", [{"trust_clip": True}, {"denominator": "sum"}, {"denominator": "grad"}], ids=str)
@pytest.mark.parametrize("optimizer", ["lars", "tvlars"])
def test_they_do_so_for_the_variants_of_other_libraries(
    optimizer: str, settings: dict[str, Any], trained: Callable[..., Path]
) -> None:
    run = open_run(trained(optimizer, "lars-warm", **settings))
    source = Source(run)
    facts = source.facts
    assert decompose(source.layers(COLUMNS), facts).remainder < 1e-5


def test_where_the_excluded_tensors_have_the_higher_rate_each_tensor_has_its_own_peak(
    trained: Callable[..., Path],
) -> None:
    source = Source(open_run(trained("lars", "lars-warm", lr=1.0, excluded_lr=4.0)))
    split = decompose(source.layers(COLUMNS), source.facts)
    assert split.remainder < 1e-5
    scale = 48 / 256  # lars-warm multiplies the rate by the batch over 256
    peaks = {name: scale * (4.0 if name.endswith("bias") else 1.0) for name in split.parameters}
    assert split.peaks.tolist() == pytest.approx([*peaks.values()])
    # Under one schedule the term of the schedule is the same for all.
    assert np.nanmax(np.ptp(split.terms["schedule"], axis=1)) < 1e-6
    assert np.nanmax(split.terms["schedule"]) == pytest.approx(0, abs=1e-6)


def test_each_term_is_its_own_factor_and_excluded_tensors_have_the_last_four_at_zero() -> None:
    lr = np.array([0.0, 0.5, 1.0])
    norms = {"a.weight": np.array([2.0, 2.0, 0.0]), "a.bias": np.ones(3)}
    grads = {"a.weight": np.array([4.0, 8.0, 8.0]), "a.bias": np.ones(3)}
    frame = layers(norms, grads, lr, biases=("a.bias",))
    names = ("a.weight", "a.bias")
    split = decompose(LayerGrid.from_frame(frame, names), lars_facts(names, biases=("a.bias",), peak_lr=1.0))
    assert split.vanished == 3  # lr 0 twice, and a weight of zero norm whose recorded ratio is 0
    at = {name: split.terms[name][1] for name in TERMS}
    assert at["schedule"].tolist() == pytest.approx([np.log(0.5)] * 2)
    assert at["eta"].tolist() == pytest.approx([np.log(ETA), 0.0])
    assert at["norm_ratio"].tolist() == pytest.approx([np.log(2 / 8), 0.0])
    assert [at["phi"].tolist(), at["clip"].tolist()] == [[0, 0], [0, 0]]


def test_optimizers_without_a_trust_ratio_have_a_schedule_only(trained: Callable[..., Path]) -> None:
    run = open_run(trained("sgd", "cosine"))
    source = Source(run)
    facts = source.facts
    split = decompose(source.layers(COLUMNS), facts)
    assert not split.adapted.any()
    assert split.remainder < 1e-5
    assert all(np.nanmax(np.abs(split.terms[name])) == 0 for name in ("eta", "phi", "norm_ratio", "clip"))


@pytest.mark.parametrize(("weight", "grad"), [(1e30, 1e-30), (1e-30, 1e30), (1.0, 0.0), (np.inf, 1.0), (2.0, 0.5)])
def test_a_ratio_of_norms_is_infinite_only_where_the_gradient_is_zero(weight: float, grad: float) -> None:
    single = {"weight_norm": np.float32([[weight]]), "grad_norm": np.float32([[grad]])}
    with np.errstate(divide="ignore"):
        exact = np.float64(weight) / np.float64(grad)
    assert norm_ratio(LayerGrid(np.arange(1), ("a",), single)).item() == pytest.approx(exact, rel=1e-6)


def test_a_grid_holds_each_row_at_its_step_and_tensor_in_the_order_asked_for() -> None:
    frame = layers({"b": np.array([1.0, 2.0]), "a": np.array([3.0, 4.0])}, {n: np.ones(2) for n in "ab"}, np.ones(2))
    frame = frame[~((frame["step"] == 1) & (frame["parameter"] == "a"))].sample(frac=1, random_state=0)
    grid = LayerGrid.from_frame(frame, order=["a", "missing", "b"])
    assert grid.parameters == ("a", "b")
    assert grid.steps.tolist() == [0, 1]
    assert grid["weight_norm"][:, 1].tolist() == [1.0, 2.0]
    assert np.isnan(grid["weight_norm"][1, 0])
