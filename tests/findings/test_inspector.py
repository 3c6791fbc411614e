from __future__ import annotations

import functools
import json
import math
import operator
from typing import Any

import pytest
import torch

from tests.findings.windows import NAMES, inspected, rows_of, tensors, window_of
from tvlars_probe.errors import UserError
from tvlars_probe.findings.ids import DEFAULT, IDS, OFF, known_rules
from tvlars_probe.findings.inspector import MOST, RULES, Inspector


def test_ids_never_change() -> None:
    assert tuple(RULES) == IDS
    assert {*OFF} < {*IDS}
    assert [*IDS] == [
        "non_finite", "loss_spike", "grad_spike", "ratio_clamped", "ratio_vanished", "full_rate_from_zero",
        "phi_dead", "weight_overwritten", "excluded_overwritten", "update_below_rounding", "batch_beyond_noise",
    ]  # fmt: skip


def test_rules_are_named_or_a_word_stands_for_several() -> None:
    assert known_rules(["all"], "x") == tuple(RULES)
    assert known_rules("none", "x") == ()
    assert known_rules(["default", "phi_dead"], "x") == tuple(dict.fromkeys((*DEFAULT, "phi_dead")))
    with pytest.raises(UserError, match=r"unknown rule in stop_on 'nan' \(known: non_finite, .*, default, all, none\)"):
        known_rules(["nan"], "stop_on")


def test_a_rule_falls_silent_and_says_so() -> None:
    rows = rows_of(3 * MOST)
    for row in rows[::2]:
        row.figures["fc.weight"]["weight_norm"] = math.nan
    found = inspected(rows, tensors(), ["non_finite"], [50, 120], resumes=True)
    assert len(found) == MOST
    assert [("says no more" in one.text) for one in found] == [False] * (MOST - 1) + [True]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e308, 0.0])
@pytest.mark.parametrize("name", NAMES)
def test_no_figure_makes_a_rule_fail_where_warnings_are_errors(wrong: float, name: str) -> None:
    """Under TVLARS, whose trust ratios have all clamps; the loss is told, and all others of the tensor are finite."""
    rows = rows_of(100)
    for figure in rows[90].figures[name]:
        rows[90].figures[name][figure] = wrong
    rows[91].figures[name]["weight_norm"] = wrong
    rows[92].figures["conv.bias"]["weight_norm"] = rows[92].figures[name]["weight_norm"] = wrong
    found = inspected(rows, tensors(phi=True, weight_cap=10.0, divisor_cap=10.0, clip="one"), IDS, [91])
    bad = [one.step for one in found if one.rule == "non_finite"]
    assert bad == ([] if math.isfinite(wrong) else [90])


def test_findings_come_in_order_of_steps_and_a_state_is_plain() -> None:
    rows = rows_of(100)
    rows[90].loss = 1e9
    rows[40].figures["conv.bias"]["update_norm"] = 1e9
    rows[45].figures["fc.weight"]["weight_norm"] = math.inf
    found = inspected(rows, tensors(), [*RULES])
    assert [one.step for one in found] == sorted(one.step for one in found)
    assert {one.rule for one in found} == {"loss_spike", "excluded_overwritten", "non_finite"}
    inspector = Inspector(RULES)
    inspector.inspect(window_of(rows, 0, tensors()))
    state = inspector.state()
    assert json.loads(json.dumps(state)) == state


def test_tensors_may_come_and_go() -> None:
    """An episode stays open while other tensors join, and the new ones begin their own."""
    inspector, rows = Inspector(["update_below_rounding"]), rows_of(4)
    for row in rows:
        row.figures["fc.bias"]["update_norm"] = 1e-12
    (first,) = inspector.inspect(window_of(rows[:2], 0, tensors()))
    assert first.parameter == "fc.bias"
    fewer = tensors()
    object.__setattr__(fewer, "names", [*NAMES[:3], "new.bias"])
    rows[2].figures["new.bias"] = rows[2].figures.pop("fc.bias")
    (second,) = inspector.inspect(window_of(rows[2:3], 2, fewer))
    assert (second.step, second.parameter) == (2, "new.bias")


def test_a_new_phase_begins_anew() -> None:
    inspector, rows = Inspector(["loss_spike"]), rows_of(160)
    for row in rows[80:]:
        row.loss = 50.0  # another phase's loss is of another size
    inspector.inspect(window_of(rows[:80], 0, tensors()))
    inspector.begin_phase()
    assert inspector.inspect(window_of(rows[80:], 80, tensors())) == []


@pytest.mark.parametrize(
    ("rule", "path", "nonsense"),
    [
        ("loss_spike", ("before",), torch.zeros(3, 2)),
        ("loss_spike", ("before",), [[1.0, 2.0], [3.0, 4.0]]),
        ("grad_spike", ("used", "is_open"), 3),
        ("grad_spike", ("used",), {}),
        ("phi_dead", ("highest",), "0.5"),
        ("phi_dead", ("count",), None),
        ("ratio_clamped", ("episodes",), {"conv.weight": True}),
        ("update_below_rounding", ("highest",), {3: 1.0}),
        ("excluded_overwritten", ("first",), {"conv.bias": [1.0]}),
        ("weight_overwritten", ("first",), {"fc.weight": [1.0]}),
        ("full_rate_from_zero", ("jumped",), {"fc.weight": "1"}),
        ("non_finite", (), "x"),
    ],
)
def test_a_state_of_another_form_is_refused(rule: str, path: tuple[str, ...], nonsense: Any) -> None:
    inspector = Inspector(RULES)
    inspector.inspect(window_of(rows_of(40), 0, tensors()))
    state = inspector.state()
    Inspector(RULES).load(state)
    keys = (rule, *path)
    inner = functools.reduce(operator.getitem, keys[:-1], state)
    inner[keys[-1]] = nonsense
    with pytest.raises(ValueError, match=f"no state of the rule {rule}"):
        Inspector(RULES).load(state)
