"""One budget for all probes: what it allows, in which order, and what it says that it left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.errors import UserError
from tvlars_probe.probes.budget import ProbeBudget

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 400


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


def spend(
    clock: Clock, budget: ProbeBudget, costs: dict[str, float], steps: range = range(STEPS)
) -> dict[str, list[int]]:
    """The steps in which each probe measures, where a step takes one second and each probe is due in all of them."""
    made: dict[str, list[int]] = {name: [] for name in costs}
    for step in steps:
        budget.step_begins()
        for name in costs:
            if budget.affords(name, step):
                clock.now += costs[name]
                budget.made(name, costs[name])
                made[name].append(step)
            else:
                budget.left_out(name, step)
        clock.now += 1.0
    return made


def test_it_holds_for_all_probes_together_and_is_dense_early(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    costs = {"cheap": 0.2, "dear": 2.0}
    made = spend(clock, ProbeBudget(0.1, STEPS), costs)
    spent = sum(costs[name] * len(steps) for name, steps in made.items())
    assert 0.09 * clock.now < spent <= 0.1 * clock.now + 2.0
    # Half of what is spent on each is spent in the first quarter or little later.
    for steps in made.values():
        assert steps[0] == 0
        assert sum(step < STEPS // 4 for step in steps) > 0.4 * len(steps)
    assert min(map(len, made.values())) > 5  # neither starves the other


def test_without_a_known_length_it_holds_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    budget, spent = ProbeBudget(0.2, None), 0.0
    for steps in (range(50), range(50, 200)):
        spent += sum(map(len, spend(clock, budget, {"one": 1.0}, steps).values()))
        assert spent <= 0.2 * clock.now + 1.0
    assert spent > 0.15 * clock.now


def test_a_slow_first_step_buys_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    budget = ProbeBudget(0.1, STEPS)
    budget.step_begins()
    clock.now += 100.0  # kernels are compiled
    made = spend(clock, budget, {"one": 1.0})
    assert len(made["one"]) <= 0.1 * (clock.now - 100.0) + 2


def test_no_limit_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = ProbeBudget(None, STEPS)
    assert len(spend(Clock(monkeypatch), budget, {"one": 50.0})["one"]) == STEPS
    assert budget.notes() == []


def test_a_resumed_budget_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    whole = spend(clock, ProbeBudget(0.1, STEPS), {"one": 1.0})["one"]
    clock.now = 0.0
    first = ProbeBudget(0.1, STEPS)
    begun = spend(clock, first, {"one": 1.0}, range(150))["one"]
    state = first.state_dict()
    clock.now += 1e6  # until the run is continued
    second = ProbeBudget(0.1, STEPS)
    second.load_state_dict(state)
    assert begun + spend(clock, second, {"one": 1.0}, range(150, STEPS))["one"] == whole


class Slow:
    """A probe that takes two seconds of the clock."""

    has_budget = False

    def __init__(self, clock: Clock) -> None:
        self.clock, self.measured = clock, list[int]()

    def due(self, step: int) -> bool:
        return True

    def affordable(self) -> bool:
        return True

    def measure(self, step: int, phase: str, rates: Any) -> dict[str, list[Any]]:
        self.clock.now += 2.0
        self.measured.append(step)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_the_manifest_says_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [Slow(clock), Slow(clock)]
    with tvlars_probe.record(model, optimizer, tmp_path / "r", probes=probes, probe_budget=0.25, total_steps=60) as rec:
        for _ in range(60):
            clock.now += 1.0
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            rec.log(samples=1)
    made = sum(len(probe.measured) for probe in probes)
    assert 2 * made <= 0.25 * clock.now + 2
    notes = tvlars_probe.open_run(tmp_path / "r").manifest.notes
    one = len(probes[0].measured)
    assert f"left out {60 - one} of 60 measurements by Slow, in steps " in notes[0]
    assert notes[1].partition(" by ")[2].startswith("Slow 2, in steps ")


@pytest.mark.parametrize("share", [0, -0.1, 1.5, "10%", float("nan")])
def test_other_shares_are_refused(share: Any, tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(UserError, match="above 0, at most 1"):
        tvlars_probe.record(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "r", probe_budget=share)


def test_the_note_of_a_resumed_run_is_of_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    measured, state = 0, None
    for _ in range(2):
        probe = Slow(clock)
        with tvlars_probe.record(
            model, optimizer, tmp_path / "r", probes=[probe], probe_budget=0.25, total_steps=60, resume=state
        ) as rec:
            for _ in range(30):
                clock.now += 1.0
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
                rec.log(samples=1)
            state = rec.state_dict()
        measured += len(probe.measured)
    (note,) = tvlars_probe.open_run(tmp_path / "r").manifest.notes
    assert f"left out {60 - measured} of 60 measurements by Slow, in steps " in note


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["elapsed", "spent", "lasts", "steps", "made"])
def test_a_nonsensical_state_is_passed_over(key: str, value: Any) -> None:
    state: dict[str, Any] = {"elapsed": 10.0, "spent": 5.0, "lasts": {"one": 5.0}, "of_each": {"one": 5.0}}
    state |= {key: [value] if key == "steps" else {"one": value} if key in ("lasts", "made") else value}
    budget = ProbeBudget(0.1, STEPS)
    budget.load_state_dict(state)
    assert budget.state_dict()["spent"] == 0.0
    assert budget.affords("one", 0)
