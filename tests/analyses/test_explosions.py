from __future__ import annotations

import numpy as np
import pytest

from tvlars_probe.analyses.explosions import find_explosions
from tvlars_probe.analyses.grid import column_medians

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
