"""The timeline shows what was planted."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.analyses.synthetic import lars_facts, layers, losses
from tests.charts.specs import data_sets
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.warmup.analysis import analyse_warmup
from tvlars_probe.charts.explosions import explosion_timeline

NAMES = ("a.weight", "b.weight", "c.weight")


def test_an_explosion_planted_at_step_37_in_two_layers_is_a_bar_each_until_it_is_over() -> None:
    steps = 200
    grad = {name: np.ones(steps) for name in NAMES}
    for name in NAMES[:2]:
        grad[name][37:45] = 50.0
    frame = layers({name: np.ones(steps) for name in NAMES}, grad, np.ones(steps))
    facts = lars_facts(NAMES, steps_per_epoch=8)
    result = analyse_warmup(LayerGrid.from_frame(frame, NAMES), losses(np.linspace(2, 1, steps)), facts)
    spec = explosion_timeline(result).to_dict()
    bars = {row["parameter"]: row for row in next(data_sets(spec)) if row["what"] == "gradient norm ‖g‖"}
    assert {*bars} == {*NAMES[:2]}
    for row in bars.values():
        assert (row["first_step"], row["end"], row["peak_over_median"]) == (37, 45, 50)
    told = "67% of the tensors explode early (to step 39), a.weight and b.weight first, at step 37"
    assert spec["title"]["text"] == told


def test_a_calm_run_says_so() -> None:
    frame = layers({"a": np.ones(50)}, {"a": np.ones(50)}, np.ones(50))
    result = analyse_warmup(LayerGrid.from_frame(frame), losses(np.linspace(2, 1, 50)), lars_facts(("a",)))
    assert explosion_timeline(result).to_dict()["title"]["text"] == "No layer exploded"


def many(tensors: int, steps: int = 100) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    names = tuple(f"{i}.weight" for i in range(tensors))
    return names, {name: np.ones(steps) for name in names}


def test_of_many_tensors_the_worst_are_drawn_and_the_statement_is_of_all() -> None:
    names, grad = many(400)
    for place, name in enumerate(names[:182]):
        grad[name][14 + place % 3 :][:2] = 10.0 + place / 100
    grad["160.weight"][1] = 6.0  # the first one, and the mildest
    grad["160.weight"][14:17] = 1.0
    frame = layers({name: np.ones(100) for name in names}, grad, np.ones(100))
    result = analyse_warmup(LayerGrid.from_frame(frame, names), losses(np.linspace(2, 1, 100)), lars_facts(names))
    table = result.explosions.copy()
    for name, ratio in (("1.weight", np.inf), ("2.weight", np.nan)):  # of a median of 0, and of none
        table.loc[table["parameter"] == name, "peak_over_median"] = ratio
    spec = explosion_timeline(dataclasses.replace(result, explosions=table)).to_dict()
    assert spec["title"]["text"] == "46% of the tensors explode early (to step 24), 160.weight first, at step 1"
    assert "the worst 40 of 182 tensors" in spec["title"]["subtitle"]
    drawn = {row["parameter"] for row in next(data_sets(spec))}
    assert len(drawn) == 40
    assert {"1.weight", "2.weight"} <= drawn
    assert "160.weight" not in drawn


def test_what_explodes_late_is_not_said_to_be_early_and_bars_reach_to_the_end() -> None:
    names, grad = many(4)
    for name in names:
        grad[name][80:] = 1e3
    frame = layers({name: np.ones(100) for name in names}, grad, np.ones(100))
    result = analyse_warmup(LayerGrid.from_frame(frame, names), losses(np.linspace(2, 1, 100)), lars_facts(names))
    spec = explosion_timeline(result).to_dict()
    told, which = spec["title"]["text"].split("; ")
    assert told == "No tensor explodes early (to step 24)"
    assert which == "100% do later, 0.weight, 1.weight, 2.weight and 1 more first, at step 80"
    assert {row["end"] for row in next(data_sets(spec))} == {100}
    assert spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == [0, 100]


def test_a_run_that_ends_at_nan_names_what_went_first_however_late_the_median() -> None:
    names, grad = many(5, steps=12)
    for place, name in enumerate(names):
        grad[name][4 + (place == 4) :] = 1e6
        grad[name][10:] = np.nan
    frame = layers({name: np.ones(12) for name in names}, grad, np.ones(12))
    loss = np.array([2.3] * 4 + [1e3] * 6 + [np.nan] * 2)
    facts = lars_facts(names, finding={"step": 10, "loss": "nan"}, status="diverged")
    result = analyse_warmup(LayerGrid.from_frame(frame, names), losses(loss), facts)
    told = "100% of the tensors explode early (to step 11), 0.weight, 1.weight, 2.weight and 1 more first, at step 4"
    assert explosion_timeline(result).to_dict()["title"]["text"] == told
