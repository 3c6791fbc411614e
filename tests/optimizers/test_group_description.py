"""Descriptions as plain values: stored, read again, and refused where they are none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles.described import DescribedTensor
from tvlars_probe import LAMB, LARS, TVLARS, Decay, GroupDescription, Momentum, Phi, Preconditioner, Scaling, describe
from tvlars_probe.optimizers.group_entries import from_entry, to_entry

BUILT: dict[str, Any] = {
    "lars": lambda p: LARS(p, 1.0, denominator="sum", exclusion="undecayed", weight_decay_filter=True),
    "lars-clip": lambda p: LARS(p, 1.0, trust_clip=True, lars_adaptation_filter=True, momentum=0.0),
    "tvlars": lambda p: TVLARS(p, 1.0, lmbda=0.1, delay=4.0, gamma_min=0.2),
    "lamb": lambda p: LAMB(p, 0.01, weight_decay=0.1, trust_clip=True, betas=(0.8, 0.99)),
    "lamb-adam": lambda p: LAMB(p, 0.01, adam=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9),
    "nadam": lambda p: torch.optim.NAdam(p),
}


def entry_of(name: str) -> tuple[GroupDescription, dict[str, Any]]:
    """A group's description, and what a manifest says of it, as JSON gives it back."""
    optimizer = BUILT[name]([nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))])
    (description,) = describe(optimizer)
    return description, json.loads(json.dumps(to_entry(description, optimizer.param_groups[0])))


@pytest.mark.parametrize("name", BUILT)
def test_a_description_comes_back_from_a_manifest_as_it_was(name: str) -> None:
    description, entry = entry_of(name)
    assert from_entry(entry) == description


@pytest.mark.parametrize("name", BUILT)
def test_entries_of_older_manifests_tell_by_class_and_settings_what_matters_to_analyses(name: str) -> None:
    description, entry = entry_of(name)
    del entry["description"]
    found = from_entry(entry)
    assert (found.optimizer, found.is_known) == (description.optimizer, description.is_known)
    assert (found.scaling, found.decay, found.stability_limit) == (
        description.scaling, description.decay, description.stability_limit,
    )  # fmt: skip
    assert [found.adapts(ndim) for ndim in (1, 2)] == [description.adapts(ndim) for ndim in (1, 2)]
    assert found.columns == description.columns


def test_the_oldest_entries_know_the_class_alone() -> None:
    assert from_entry({"optimizer": "LARS"}).scaling.kind == "trust-ratio"
    assert from_entry({"optimizer": "Mystery"}) == GroupDescription.unknown("Mystery")
    assert from_entry({}) == GroupDescription.unknown("")


@pytest.mark.parametrize(
    "entry",
    [
        {"description": 3},
        {"description": {}},
        {"description": {"optimizer": 3}},
        {"description": {"optimizer": "LARS", "momentum": "much"}},
        {"description": {"optimizer": "LARS", "momentum": {"beta": "0.9"}}},
        {"description": {"optimizer": "LARS", "scaling": {"kind": "magic"}}},
        {"description": {"optimizer": "LARS", "scaling": {"phi": {"lmbda": None}}}},
        {"description": {"optimizer": "LARS", "is_known": "yes"}},
        {"momentum": {"form": "heavy-ball", "beta": [1]}},
        {"weight_decay": "<script>"},
        {"eta": {}},
    ],
    ids=str,
)
def test_a_strangers_entry_is_unknown_and_raises_nothing(entry: dict[str, Any]) -> None:
    found = from_entry({"optimizer": "LARS", "module": "", **entry})
    assert not found.is_known
    assert found.columns == frozenset()
    assert (found.adapts(2), found.stability_limit) == (None, None)


def test_what_a_later_version_added_is_passed_over() -> None:
    stored = GroupDescription(optimizer="LARS", scaling=Scaling(kind="trust-ratio", phi=Phi(lmbda=0.1))).as_dict()
    stored["novelty"] = stored["scaling"]["novelty"] = 3
    assert GroupDescription.from_dict(stored).scaling.phi == Phi(lmbda=0.1)


def test_words_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Momentum.form is 'heavy' \(allowed: 'none', 'heavy-ball'"):
        Momentum(form="heavy")  # type: ignore[arg-type]


MOMENTA = {
    "none": Momentum(),
    "heavy ball": Momentum(form="heavy-ball", beta=0.9),
    "damped": Momentum(form="heavy-ball", beta=0.8, dampening=0.3),
    "nesterov": Momentum(form="nesterov", beta=0.9),
    "damped nesterov": Momentum(form="nesterov", beta=0.7, dampening=0.4),
    "moving average": Momentum(form="moving-average", beta=0.9),
    "moving average over the gradient": Momentum(form="moving-average", beta=0.9, over="gradient"),
    "lookahead": Momentum(form="moving-average", beta=0.9, lookahead=True),
}


def radius(momentum: Momentum, decay: Decay, curvature: float, lr: float) -> float:
    """The spectral radius of one described step on ½·curvature·w², as a matrix that acts on (w, m)."""
    columns = []
    for w, m in ((1.0, 0.0), (0.0, 1.0)):
        tensor = DescribedTensor(np.array(w), GroupDescription(optimizer="x", momentum=momentum, decay=decay), t=1)
        tensor.memory["m"] = np.array(m)
        tensor.step(np.array(curvature * w), lr)
        columns.append([float(tensor.w), 0.0 if momentum.form == "none" else float(tensor.memory["m"])])
    return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())


@pytest.mark.parametrize("shrinkage", [0.0, 1e-4, 0.1, 0.7, 1.5])
@pytest.mark.parametrize("name", MOMENTA)
def test_at_the_stability_limit_a_step_on_a_quadratic_has_spectral_radius_one(name: str, shrinkage: float) -> None:
    momentum, lr = MOMENTA[name], 0.05
    limit = momentum.stability_limit * (1 - shrinkage / 2)
    curvature, decay = limit / (lr * (1 - momentum.damping)), Decay(form="decoupled", value=shrinkage / lr)
    assert radius(momentum, decay, curvature, lr) == pytest.approx(1.0, abs=1e-9)
    assert radius(momentum, decay, 0.999 * curvature, lr) < 1 < radius(momentum, decay, 1.001 * curvature, lr)


def test_the_stability_limit_is_the_one_of_cohen_et_al() -> None:
    assert MOMENTA["none"].stability_limit == 2.0
    assert MOMENTA["heavy ball"].stability_limit == MOMENTA["moving average"].stability_limit == pytest.approx(3.8)
    assert MOMENTA["nesterov"].stability_limit == MOMENTA["lookahead"].stability_limit == pytest.approx(3.8 / 2.8)


@pytest.mark.parametrize(
    "words",
    [
        {"preconditioner": Preconditioner(kind="sign")},
        {"preconditioner": Preconditioner(kind="matrix")},
        {"momentum": Momentum(form="moving-average", beta=0.99, output_beta=0.9)},
        {"maximize": True},
        {"max_grad_norm": 1.0},
        {"is_known": False},
    ],
    ids=str,
)
def test_what_is_no_rate_times_the_gradient_has_neither_rates_nor_a_limit(words: dict[str, Any]) -> None:
    assert GroupDescription(optimizer="x").has_rates
    group = GroupDescription(optimizer="x", **words)
    assert (group.has_rates, group.stability_limit) == (False, None)
