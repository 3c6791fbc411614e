from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tvlars_probe.live import layer_medians
from tvlars_probe.live.layer_medians import COLUMNS, LayerMedians


def rows(steps: list[int], names: list[str], values: list[float]) -> pa.Table:
    """A row for each entry, with the same value in each figure."""
    figures: dict[str, Any] = dict.fromkeys(COLUMNS[1:], pa.array(values, pa.float32()))
    return pa.table({"step": steps, "parameter": pa.chunked_array([pa.array(names).dictionary_encode()]), **figures})


def furthest(medians: LayerMedians) -> list[tuple[str, float]]:
    return [(far.parameter, far.factor) for far in medians.furthest(9)["grad_norm"].tensors]


def test_rows_may_come_in_order_of_parameters_and_in_pieces() -> None:
    steps, names = [0, 1, 2, 0, 1, 2], ["a"] * 3 + ["b"] * 3
    values = [1.0, 1.0, 4.0, 1.0, 1.0, 8.0]
    whole, pieces = LayerMedians(), LayerMedians()
    whole.add(rows(steps, names, values), 0)
    for step in range(3):
        at = [k for k in range(6) if steps[k] == step]
        pieces.add(rows([step] * 2, [names[k] for k in at], [values[k] for k in at]), 0)
    assert furthest(whole) == furthest(pieces) == [("b", pytest.approx(8)), ("a", pytest.approx(4))]
    assert whole.furthest(1)["grad_norm"].step == 2


def test_rows_before_the_phase_began_do_not_count() -> None:
    medians = LayerMedians()
    medians.add(rows([0, 1, 2, 3], ["a"] * 4, [9.0, 9.0, 1.0, 2.0]), 2)
    assert furthest(medians) == [("a", pytest.approx(4 / 3))]
    medians.add(rows([1], ["a"], [9.0]), 2)  # all of them before it
    assert medians.furthest(1)["grad_norm"].step == 3


def test_steps_far_apart_and_very_many() -> None:
    medians = LayerMedians()
    far_apart = np.array([0, 5, 1 << 40, (1 << 40) + 1]).tolist()
    medians.add(rows(far_apart, ["a"] * 4, [1.0, 1.0, 1.0, 3.0]), 0)
    assert furthest(medians) == [("a", pytest.approx(3))]
    medians.add(rows([*range(1 << 41, (1 << 41) + 500)], ["a"] * 500, [1.0] * 499 + [2.0]), 0)
    assert furthest(medians) == [("a", pytest.approx(2))]


def test_more_tensors_than_memory_should_hold_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_medians, "MOST_TENSORS", 1)
    medians = LayerMedians()
    medians.add(rows([0, 0], ["a", "b"], [1.0, 1.0]), 0)
    assert medians.furthest(1)["grad_norm"].step is None
