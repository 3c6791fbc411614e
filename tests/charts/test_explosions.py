"""The timeline shows what was planted."""

from __future__ import annotations

import numpy as np

from tests.analyses.synthetic import lars_facts, layers, losses
from tests.charts.specs import data_sets
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.warmup import analyse_warmup
from tvlars_probe.charts.explosions import explosion_timeline

NAMES = ("a.weight", "b.weight", "c.weight")


def test_an_explosion_planted_at_step_37_in_two_layers_is_a_bar_each_until_it_is_over() -> None:
    steps = 200
    grad = {name: np.ones(steps) for name in NAMES}
    for name in NAMES[:2]:
        grad[name][37:45] = 50.0
    frame = layers({name: np.ones(steps) for name in NAMES}, grad, np.ones(steps))
    result = analyse_warmup(LayerGrid.from_frame(frame, NAMES), losses(np.linspace(2, 1, steps)), lars_facts(NAMES))
    spec = explosion_timeline(result).to_dict()
    bars = {row["parameter"]: row for row in next(data_sets(spec)) if row["what"] == "gradient norm ‖g‖"}
    assert {*bars} == {*NAMES[:2]}
    for row in bars.values():
        assert (row["first_step"], row["end"], row["peak_over_median"]) == (37, 45, 50)
    assert spec["title"]["text"].startswith("67% of the tensors explode, a.weight first, at step 37")


def test_a_calm_run_says_so() -> None:
    frame = layers({"a": np.ones(50)}, {"a": np.ones(50)}, np.ones(50))
    result = analyse_warmup(LayerGrid.from_frame(frame), losses(np.linspace(2, 1, 50)), lars_facts(("a",)))
    assert explosion_timeline(result).to_dict()["title"]["text"] == "No layer exploded"
