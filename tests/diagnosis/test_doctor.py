"""The doctor finds every planted fault, and none in sound optimizers."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tvlars_probe
from tests.diagnosis.broken import (
    OF_OTHERS,
    PLANTED,
    ClosureAsked,
    FactorDies,
    ForeachElsewhere,
    ForeachRaises,
    GraphAsked,
    MatricesAlone,
    Noisy,
    NoisyByItself,
    OfficialTVLARS,
    RaisesInDouble,
    Sound,
    StepRaises,
    VectorsRaise,
    VectorsStand,
    WellDescribed,
)
from tvlars_probe import LARS, TVLARS, doctor
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.registry import OPTIMIZERS

if TYPE_CHECKING:
    from torch.optim import Optimizer

FEW = 120
"""Steps for a factor to die in: the planted ones do by then."""

TORCH = [
    kind for name, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
]  # fmt: skip
OURS = [entry.load() for entry in OPTIMIZERS.values() if entry.path.startswith("tvlars_probe.")]


def wrong(optimizer: Any, **settings: Any) -> set[str]:
    return {check.name for check in doctor(optimizer, steps=FEW, **settings).wrong}


@pytest.mark.parametrize(("kind", "faults"), PLANTED.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_planted_fault_is_found_and_no_other(kind: type[Optimizer], faults: set[str]) -> None:
    found = doctor(kind, steps=FEW)
    assert {check.name for check in found.wrong} == faults
    assert all(check.remedy for check in found.wrong)


@pytest.mark.parametrize("kind", [Sound, WellDescribed])
def test_the_one_without_a_fault_is_right_in_all(kind: type[Optimizer]) -> None:
    told = {check.name: check.answer for check in doctor(kind, steps=FEW).checks}
    described = told.pop("description_holds")
    assert described == ("right" if kind is WellDescribed else "not applicable")
    assert {*told.values()} == {"right"}


@pytest.mark.parametrize("kind", [*TORCH, *OURS], ids=lambda kind: kind.__name__)
def test_nothing_is_wrong_with_torchs_and_ours(kind: type[Optimizer]) -> None:
    found = doctor(kind, steps=FEW)
    assert {check.name: check.came for check in found.checks if check.answer in ("wrong", "can't tell")} == {}
    if kind in OURS:
        assert {check.answer for check in found.checks} == {"right"}
    if kind.__name__ in ("LBFGS", "SparseAdam"):
        assert {check.answer for check in found.checks} == {"not applicable"}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
        (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
        (TVLARS, {"lr": 1.0, "lmbda": 0.1, "momentum": 0.0, "gamma_min": 0.01}),
        (LARS, {"lr": 1.0, "denominator": "sum", "trust_clip": True}),
    ],
    ids=str,
)
def test_nor_with_other_settings(kind: type[Optimizer], settings: dict[str, Any]) -> None:
    assert wrong(kind, settings=settings) == set()


@pytest.mark.parametrize(("kind", "faults"), OF_OTHERS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_the_known_faults_of_other_packages_are_found(kind: type[Optimizer], faults: set[str]) -> None:
    assert {check.name for check in doctor(kind, steps=400).wrong} == faults


@pytest.mark.parametrize(
    ("name", "faults"),
    [("timm.optim:Lars", {"excluded_held"}), ("pytorch_optimizer:LARS", {"gradient_kept", "excluded_held"})],
)
def test_the_packages_themselves_have_them(name: str, faults: set[str]) -> None:
    """pytorch_optimizer 4 no longer seeds its buffer with the raw gradient."""
    module, _, attribute = name.partition(":")
    package = pytest.importorskip(module)
    assert faults <= wrong(getattr(package, attribute))


@pytest.mark.parametrize(
    ("kind", "check", "answer", "came"),
    [
        (StepRaises, "steps_made", "wrong", "its step raises KeyError: 'exp_avg'"),
        (RaisesInDouble, "steps_made", "wrong", "in float64, but not in float32, its step raises RuntimeError"),
        (VectorsRaise, "steps_made", "wrong", "a step on tensors of shapes (5,) and () raises IndexError: Dimension"),
        (MatricesAlone, "excluded_held", "not applicable", "it takes matrices alone: ValueError: only 2D"),
        (VectorsStand, "steps_made", "wrong", "20 steps don't move what has shape (5,) or ()"),
        (VectorsStand, "excluded_held", "wrong", "a vector isn't moved"),
        (ForeachRaises, "kernels_agree", "wrong", "foreach=True raises RuntimeError: expected scalar type"),
        (ForeachElsewhere, "kernels_agree", "not applicable", "foreach: RuntimeError: foreach is not supported"),
        (Noisy, "state_saved", "right", "the same bits"),
        (NoisyByItself, "lr_of_group", "not applicable", "its updates are random"),
        (NoisyByItself, "state_saved", "can't tell", "two runs from one start differ"),
    ],
)
def test_an_answer_says_what_came(kind: type[Optimizer], check: str, answer: str, came: str) -> None:
    found = doctor(kind, steps=20)[check]
    assert found.answer == answer
    assert found.came.removeprefix("in float64: ").startswith(came)


@pytest.mark.parametrize(
    ("kind", "needs"),
    [
        (ClosureAsked, "a closure"),
        (GraphAsked, "gradients that have a graph"),
        (torch.optim.LBFGS, "a closure"),
        (torch.optim.SparseAdam, "sparse gradients"),
    ],
)
def test_what_needs_another_kind_of_step_cant_be_tried(kind: type[Optimizer], needs: str) -> None:
    found = doctor(kind, steps=20)
    assert found.untried is not None
    assert found.untried.startswith(f"its step needs {needs}: ")
    assert {check.answer for check in found.checks} == {"not applicable"}


def test_a_rate_of_zero_moves_nothing_and_is_no_fault() -> None:
    found = doctor(torch.optim.SGD, {"lr": 0, "momentum": 0.9, "weight_decay": 0.1}, steps=20)
    assert not found.wrong
    assert found["decay_of_group"].came == found["factor_alive"].came == "its lr is 0"


def test_up_is_right_where_it_is_asked_for() -> None:
    assert wrong(torch.optim.SGD, settings={"lr": 0.1, "maximize": True}) == set()


def test_settings_are_for_a_class_alone() -> None:
    for given in (torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), lambda params: Sound(params)):
        with pytest.raises(UserError, match=r"settings \(lr\) are for a class"):
            doctor(given, {"lr": 1.0})


def test_the_step_at_which_a_factor_dies_is_told() -> None:
    """φ ≈ exp(−t): below a millionth of the first at t = 15, from where momentum of 0.9 fades to a millionth."""
    came = doctor(FactorDies, steps=200)["factor_alive"].came
    found = re.search(r"from step (\d+) on", came)
    assert found is not None
    assert 100 < int(found.group(1)) < 160
    assert doctor(FactorDies, {"momentum": 0.0}, steps=60)["factor_alive"].came.startswith("from step 1")


def test_our_tvlars_dies_where_its_formula_does_and_says_what_helps() -> None:
    check = doctor(TVLARS, {"lr": 1.0, "lmbda": 1.0, "momentum": 0.0}, steps=60)["factor_alive"]
    assert check.answer == "wrong"
    assert "gamma_min" in check.remedy
    assert wrong(OfficialTVLARS) >= {"state_saved"}


def test_an_optimizer_in_use_is_tried_with_its_settings_and_left_as_it_is() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.7, weight_decay=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = copy.deepcopy((optimizer.state_dict(), [p.detach().clone() for p in model.parameters()]))
    random = torch.get_rng_state()
    found = doctor(optimizer, steps=FEW)
    assert not found.wrong
    assert any("fade by 0.7" in line for line in found.description)
    assert torch.equal(random, torch.get_rng_state())
    assert str(before[0]) == str(optimizer.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[1], strict=True))


def test_a_function_makes_what_no_constructor_can() -> None:
    class Needs(Sound):
        def __init__(self, params: Any, friend: object) -> None:
            super().__init__(params)

    with pytest.raises(UserError, match=r"Needs can't be made without friend: give --set friend=VALUE"):
        doctor(Needs)
    assert wrong(lambda params: Needs(params, object())) == set()


def test_what_it_is_stands_above_the_checks() -> None:
    lines = doctor(LARS, steps=FEW).description
    assert "first update: along the gradient" in lines
    assert any("‖w‖ to the power 1.00" in line for line in lines)
    assert lines[-1].endswith("heavy-ball momentum 0.9, coupled decay 0.0005, scaling by trust-ratio, eta 0.001")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "int is no optimizer"),
        (nn.Linear, "Linear is no optimizer: give a subclass"),
        (torch.optim.Optimizer, "Optimizer has no step of its own: it's a base class"),
        (lambda params: 3, "the function returned int"),
    ],
)
def test_what_is_no_optimizer_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        doctor(given)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(UserError, match=r"steps 3 are too few for a factor to die in \(allowed: 10 or more\)"):
        doctor(Sound, steps=3)


def test_a_diagnosis_is_plain_data() -> None:
    found = doctor(WellDescribed, steps=20)
    assert isinstance(found, tvlars_probe.Diagnosis)
    told = json.loads(json.dumps(found.as_dict()))
    assert told["wrong"] == []
    assert {*told["checks"][0]} == {"name", "tried", "expected", "came", "answer", "remedy"}
