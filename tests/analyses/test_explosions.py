from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvlars_probe.analyses.course import Course
from tvlars_probe.analyses.explosions import explosions_of, find_explosions
from tvlars_probe.analyses.grid import LayerGrid, column_medians
from tvlars_probe.analyses.rises import level_of

STEPS = np.arange(100)
NAMES = tuple(f"layer{i}.weight" for i in range(6))


def found(values: np.ndarray, **settings: float):  # type: ignore[no-untyped-def]
    return find_explosions("grad_norm", values, STEPS, NAMES, **settings).set_index("parameter")


def test_an_explosion_planted_at_step_37_in_two_layers_is_found_there_and_nowhere_else() -> None:
    values = np.ones((100, 6), np.float32)
    values[37:45, [1, 4]] = 50.0
    values[40, 4] = 80.0
    table = found(values)
    assert table.index[table["exploded"]].tolist() == ["layer1.weight", "layer4.weight"]
    hit = table[table["exploded"]]
    assert hit["first_step"].tolist() == [37, 37]
    assert hit["peak_step"].tolist() == [37, 40]
    assert hit["peak_over_median"].tolist() == [50, 80]
    assert hit["recovery_steps"].tolist() == [8, 8]


def test_a_gradient_that_only_shrinks_has_not_exploded_however_small_it_ends() -> None:
    values = np.repeat(np.geomspace(1, 1e-6, 100)[:, None], 6, axis=1)
    table = found(values)
    assert not table["exploded"].any()
    assert (table["start_over_median"] > 100).all()


def test_an_explosion_that_lasts_to_the_end_has_no_recovery() -> None:
    values = np.ones((100, 6))
    values[95:, 0] = 9.0
    row = found(values).iloc[0]
    assert row["exploded"]
    assert np.isnan(row["recovery_steps"])


def test_infinite_values_explode_and_missing_rows_do_not() -> None:
    values = np.ones((100, 6))
    values[:, 1] = np.nan
    values[20, 2] = np.inf
    table = found(values)
    assert table["exploded"].tolist() == [False, False, True, False, False, False]
    assert table.loc["layer2.weight", "first_step"] == 20


@pytest.mark.parametrize("factor", [3.0, 7.0])
def test_the_threshold_is_the_factor_times_the_larger_reference(factor: float) -> None:
    values = np.ones((100, 6))
    values[10, 0], values[10, 1] = factor * 1.01, factor * 0.99
    assert found(values, factor=factor)["exploded"].tolist()[:2] == [True, False]


def test_column_medians_are_numpys() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(31, 5))
    values[rng.random(values.shape) < 0.3] = np.nan
    values[:, 4] = np.nan
    values[:30, 3] = np.nan
    ours = column_medians(values)
    assert np.allclose(ours[:4], np.nanmedian(values[:, :4], axis=0))
    assert np.isnan(ours[4])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20, 21])
def test_medians_of_tensors_are_numpys_without_its_overhead(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(count).lognormal(size=(count, 3))
    expected = [np.median(column) for column in values.T] if count else [np.nan] * 3
    monkeypatch.delattr(np, "median")
    assert np.array_equal(column_medians(values), expected, equal_nan=True)
    assert np.array_equal(level_of(values[:, 0]), expected[0], equal_nan=True)


def one(values: Any, **settings: Any) -> Any:
    """The row of one tensor with these values, recorded in each step."""
    column = np.asarray(values, float)[:, None]
    return find_explosions("grad_norm", column, np.arange(len(column)), ("w",), **settings).iloc[0]


def of_norms(weight: Any, grad: Any, update: Any, course: Course | None = None) -> dict[str, float | None]:
    """The first step of each quantity's explosion, of one tensor with these norms; None where it has none."""
    norms = {"weight_norm": weight, "grad_norm": grad, "update_norm": update}
    values = {name: np.asarray(column, np.float32)[:, None] for name, column in norms.items()}
    # A step without a row of the tensor has no rate either; here such a step has no norm of the weights.
    values["lr"] = np.where(np.isnan(values["weight_norm"]), np.nan, 0.1)
    grid = LayerGrid(np.arange(len(values["lr"])), ("w",), values)
    table = explosions_of(grid, course or Course()).set_index("quantity")
    return {name: row.first_step if row.exploded else None for name, row in table.iterrows()}


def test_growth_without_end_is_dated_by_what_was_before_it() -> None:
    """1.2ᵗ passes five times its start in step 9, and five times the median before it, 1.2^(t/2), in step 18."""
    row = one(1.2 ** np.arange(100))
    assert row["exploded"]
    assert 9 <= row["first_step"] <= 18
    assert (row["peak_step"], np.isnan(row["recovery_steps"])) == (99, True)


def test_linear_growth_and_a_smooth_decay_by_ten_thousand_are_no_explosions() -> None:
    assert not one(np.arange(1.0, 101.0))["exploded"]
    assert not one(np.geomspace(1, 1e-4, 500))["exploded"]


def test_what_a_network_does_when_it_begins_to_learn_is_no_explosion_and_a_spike_is_one() -> None:
    rise, stay, fall = 0.1 * 1.5 ** np.arange(8), np.full(60, 1.8), np.geomspace(1.8, 1e-4, 400)
    learning = np.concatenate([rise, stay, fall])
    assert not one(learning)["exploded"]
    learning[40:43] = 20.0
    row = one(learning)
    assert (row["first_step"], row["peak_step"]) == (40, 40)


def test_batches_that_differ_tenfold_late_in_training_are_no_explosion() -> None:
    noise = np.random.default_rng(0).lognormal(sigma=1.2, size=600)
    late = np.geomspace(0.03, 1e-3, 600) * noise
    assert (late > 5 * 0.02).sum() > 3  # beyond start and later median
    early = [np.geomspace(0.02, 0.3, 12), np.full(300, 0.3), np.geomspace(0.3, 0.03, 100)]
    assert not one(np.concatenate([*early, late]))["exploded"]


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_a_norm_that_stops_being_finite_has_exploded_in_that_step(bad: float) -> None:
    for first in (0, 1, 7, 29):
        grad, update = np.ones(30), np.full(30, 0.1)
        grad[first:], update[first:] = bad, np.nan
        assert of_norms(np.ones(30), grad, update) == {"lnr": first, "grad_norm": first, "update_ratio": first}


def test_a_single_infinity_is_over_in_the_next_step() -> None:
    values = np.ones(60)
    values[20] = np.inf
    row = one(values)
    assert (row["first_step"], row["peak_step"], row["recovery_steps"], row["later_median"]) == (20, 20, 1, 1)


def test_a_single_recorded_step_explodes_only_if_it_is_not_finite() -> None:
    assert of_norms([1.0], [3.0], [0.1]) == {"lnr": None, "grad_norm": None, "update_ratio": None}
    assert of_norms([1.0], [np.nan], [np.nan])["grad_norm"] == 0


def test_missing_rows_are_no_values_and_end_no_explosion() -> None:
    grad = np.ones(60)
    grad[[30, 34]] = 50.0
    gone = np.isin(np.arange(60), [5, 31, 32, 33])
    weight, update = np.where(gone, np.nan, 1.0), np.where(gone, np.nan, 0.1)
    grad[gone] = np.nan
    assert of_norms(weight, grad, update)["grad_norm"] == 30
    assert one(np.where(gone, np.nan, grad))["recovery_steps"] == 5
    frozen = of_norms(np.full(60, np.nan), np.full(60, np.nan), np.full(60, np.nan))
    assert {*frozen.values()} == {None}
    assert np.isnan(one(np.full(60, np.nan))["peak_step"])


def test_a_gradient_of_zero_has_no_ratio_and_no_level() -> None:
    grad = np.ones(60)
    grad[[3, 4, 40]] = 0.0
    calm = {"lnr": None, "grad_norm": None, "update_ratio": None}
    assert of_norms(np.ones(60), grad, 0.1 * grad) == calm
    rare = np.where(np.arange(60) % 9 == 4, 1.0, 0.0)  # a tensor that few batches touch
    assert of_norms(np.ones(60), rare, 0.1 * rare) == calm


def test_the_norm_ratio_explodes_only_where_gradient_or_update_rise_too() -> None:
    grad, update = np.ones(90), np.full(90, 0.1)
    grad[40:45] = 0.02
    assert of_norms(np.ones(90), grad, update)["lnr"] is None
    update[50] = 5.0  # in another stretch
    assert of_norms(np.ones(90), grad, update)["lnr"] is None
    update[43] = 0.3
    assert of_norms(np.ones(90), grad, update) == {"lnr": 40, "grad_norm": None, "update_ratio": 50}


def test_a_gradual_rise_counts_where_the_loss_is_harmed_and_says_nothing_otherwise() -> None:
    values = np.concatenate([np.ones(20), 1.3 ** np.arange(12), 1.3 ** np.arange(12)[::-1], np.ones(60)])
    assert not one(values)["exploded"]
    harmed = np.zeros(len(values), bool)
    harmed[33] = True
    row = one(values, course=Course(harmed=harmed))
    assert (row["first_step"], row["recovery_steps"]) == (27, 10)  # 1.3⁷ is the first power above 5


def test_the_reference_of_a_diverged_run_is_what_came_before() -> None:
    values = np.concatenate([np.full(12, 2.0), np.full(30, 1e6)])
    row = one(values, course=Course(harmed=np.arange(42) >= 13, until=13))
    assert (row["first_step"], row["later_median"], row["peak_over_median"]) == (12, 2.0, 5e5)


def test_the_settled_part_is_counted_in_updates_however_unevenly_they_are_recorded() -> None:
    """Of 200 updates the first 100 are all recorded, then one in fifty: the later median is that of the two."""
    steps = np.array([*range(100), 100, 150])
    values = np.concatenate([np.full(100, 7.0), np.ones(2)])[:, None]
    assert find_explosions("grad_norm", values, steps, ("w",)).iloc[0]["later_median"] == 1.0


def test_between_two_distant_steps_a_rise_is_not_known_to_be_sudden() -> None:
    values = np.array([0.1, 1.2, 1.5, 1.5, *np.geomspace(1.5, 1e-3, 60)])[:, None]
    sparse = find_explosions("grad_norm", values, 10 * np.arange(len(values)), ("w",)).iloc[0]
    dense = find_explosions("grad_norm", values, np.arange(len(values)), ("w",)).iloc[0]
    assert (bool(sparse["exploded"]), bool(dense["exploded"])) == (False, True)


def test_without_rows_or_tensors_the_table_is_empty_with_its_columns() -> None:
    nothing = np.zeros((0, 2), np.float32)
    grid = LayerGrid(
        np.arange(0), ("a", "b"), dict.fromkeys(("weight_norm", "grad_norm", "update_norm", "lr"), nothing)
    )
    table = explosions_of(grid, Course())
    assert len(table) == 0
    assert table[table["exploded"]].empty
