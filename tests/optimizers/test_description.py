"""Is what is described of an optimizer what it does? Asked by experiment, of every class that there is."""

from __future__ import annotations

import dataclasses
import inspect
import random
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytorch_optimizer
import timm.optim
import torch
from torch.optim import Optimizer

from tests.optimizers.wrapping import wrapped
from tests.oracles import apex
from tests.oracles.described import DescribedTensor, clipped
from tvlars_probe import LAMB, LARS, TVLARS, GroupDescription, describe
from tvlars_probe.optimizers.description import LiveDescription
from tvlars_probe.optimizers.registry import OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any
    Settings = dict[str, Any]


def classes_of(module: Any) -> list[type[Optimizer]]:
    """The optimizers that a module offers, each once."""
    kinds = {kind for name, kind in vars(module).items() if isinstance(kind, type) and not name.startswith("_")}
    found = {kind for kind in kinds if issubclass(kind, Optimizer)}
    return sorted(found - {Optimizer}, key=lambda kind: kind.__name__)


TORCH, TIMM = classes_of(torch.optim), classes_of(timm.optim)
OURS = [entry.load() for entry in OPTIMIZERS.values() if entry.path.startswith("tvlars_probe.")]
KOZISTR = [pytorch_optimizer.LARS, pytorch_optimizer.Lamb, pytorch_optimizer.Lion, pytorch_optimizer.NovoGrad]
APEX = classes_of(apex)
EVERY = [*TORCH, *OURS, *TIMM, *KOZISTR, *APEX]

KNOWN = {
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop),
    *([torch.optim.Muon] if hasattr(torch.optim, "Muon") else []),
    *(timm.optim.Lars, timm.optim.Lamb, timm.optim.SGDW, timm.optim.AdamWLegacy),
    *(timm.optim.Lion, timm.optim.NvNovoGrad),
    *OURS, *KOZISTR, *APEX,
}  # fmt: skip
"""Those that must be described: of the others, some subclass one of these and do the same."""

# What each setting may be besides its default; one that a class hasn't is passed over. How a step is computed
# (foreach, fused, ...) is not what it is.
CHOICES: dict[str, list[Any]] = {
    "adam": [True], "adagrad_w_mode": [True], "adam_w_mode": [False], "adam_debias": [True], "adanorm": [True],
    "adjust_lr_fn": ["original", "match_rms_adamw", "spectral_unclamped"], "alpha": [0.6], "always_adapt": [True],
    "amsgrad": [True],
    "betas": [(0.7, 0.8)], "bias_correction": [False], "caution": [True], "centered": [True],
    "corrected_weight_decay": [True], "dampening": [0.3], "decoupled_decay": [True], "decoupled_weight_decay": [True],
    "delay": [2.0], "denominator": ["sum", "grad"], "eps": [1e-2], "eta": [0.3], "exclusion": ["undecayed"],
    "fixed_decay": [True], "foreach": [True, False], "gamma_min": [0.05], "grad_averaging": [False, True],
    "initial_accumulator_value": [0.5], "lars_adaptation_filter": [True], "lmbda": [0.3], "lr_decay": [0.1],
    "max_grad_norm": [0.5, None], "maximize": [True], "momentum": [0.0, 0.8], "nesterov": [True, False],
    "pre_norm": [True], "rectify": [True], "trust_clip": [True], "trust_coeff": [0.3], "trust_coefficient": [0.3],
    "use_nvlamb": [True], "weight_decay": [0.0, 0.2], "weight_decay_filter": [True], "weight_decouple": [False, True],
    "wd_after_momentum": [True],
}  # fmt: skip
SHAPES = ((4, 3), (2, 3, 2, 2), (5,), (), (3, 2))
"""Of the tensors; the last one is zero, and others' gradients are zero in the first and in the second step."""


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """timm's NovoGrad keeps the squared norm in torch's default type, whatever the weights' is."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def variants(kind: type[Optimizer], number: int = 24) -> Iterator[Settings]:
    """Settings of a class: its defaults, each choice alone, and some drawn together."""
    names = [name for name in inspect.signature(kind.__init__).parameters if name in CHOICES]
    yield {}
    yield from ({name: choice} for name in names for choice in CHOICES[name])
    draw = random.Random(zlib.crc32(kind.__name__.encode()))
    for _ in range(number):
        yield {name: draw.choice(CHOICES[name]) for name in names if draw.random() < 0.5}


def tensors(shapes: Any = SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    drawn[-1].zero_()
    return [torch.nn.Parameter(w) for w in drawn]


def built(kind: type[Optimizer], settings: Settings) -> tuple[Optimizer, list[torch.nn.Parameter]] | None:
    """An optimizer of two groups, or of one where it takes no more, of matrices where it takes no other tensors."""
    for shapes in (SHAPES, ((4, 3), (3, 4), (2, 5), (3, 2))):
        params = tensors(shapes)
        for groups in ([{"params": params[:2]}, {"params": params[2:], "lr": 0.05}], params):
            try:
                return kind(groups, lr=0.3, **settings), params
            except (ValueError, RuntimeError, TypeError, IndexError, AttributeError):  # not these, or not so many
                continue
    return None


def deviation(optimizer: Optimizer, params: list[torch.nn.Parameter], groups: tuple[GroupDescription, ...]) -> float:
    """Largest difference between the updates that an optimizer makes and those that the descriptions say, relative."""
    orthogonal = muons(optimizer.param_groups[0])
    described = [
        DescribedTensor(p.detach().numpy().copy(), group, orthogonal)
        for group, entry in zip(groups, optimizer.param_groups, strict=True)
        for p in entry["params"]
    ]
    generator, worst = torch.Generator().manual_seed(2), 0.0
    for step in range(5):
        grads = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
        if step < 2:
            grads[3 - step].zero_()
        for group in optimizer.param_groups:
            group["lr"] *= (1.0, 0.5, 1.4, 1.0, 2.0)[step]
        before = [tensor.w for tensor in described]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        lrs = [float(group["lr"]) for group in optimizer.param_groups for _ in group["params"]]
        given = clipped([g.numpy() for g in grads], groups)
        for p, tensor, g, lr, w in zip(params, described, given, lrs, before, strict=True):
            tensor.step(g, lr)
            made, said = p.detach().numpy() - w, tensor.w - w
            # Of weights of order 1, an update is known to 2e-16 only.
            size = float(np.max(np.abs(made)) + 1e-5 * np.max(np.abs(w)))
            worst = max(worst, float(np.max(np.abs(made - said))) / size if size else float(np.max(np.abs(said))))
            tensor.w = p.detach().numpy().copy()  # each step is measured by itself
    return worst


def muons(group: dict[str, Any]) -> Callable[[Array], Array] | None:
    """torch's own way to make a matrix orthogonal, by a group's coefficients: it isn't part of a description."""
    if "ns_coefficients" not in group:
        return None
    from torch.optim._muon import _zeropower_via_newtonschulz

    def orthogonal(x: Array) -> Array:
        made = _zeropower_via_newtonschulz(
            torch.from_numpy(x), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        return made.double().numpy()

    return orthogonal


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_what_is_described_is_what_is_done(kind: type[Optimizer]) -> None:
    """To 1e-10 of each update, or the group is unknown and nothing is claimed."""
    seen = {True: 0, False: 0}
    for settings in variants(kind):
        made = built(kind, settings)
        if made is None:
            continue
        optimizer, params = made
        groups = describe(optimizer)
        assert {(group.optimizer, group.module) for group in groups} == {(kind.__name__, kind.__module__)}
        known = all(group.is_known for group in groups)
        seen[known] += 1
        if known:
            assert deviation(optimizer, params, groups) < 1e-10, settings
    if kind in KNOWN:
        assert seen[True] >= 5


def test_every_optimizer_of_torch_was_asked() -> None:
    assert {*TORCH} >= {torch.optim.SGD, torch.optim.Adafactor, torch.optim.LBFGS, torch.optim.Rprop}
    assert {kind for kind in TORCH if describe_default(kind)} == {kind for kind in KNOWN if kind in TORCH}


def describe_default(kind: type[Optimizer]) -> bool:
    made = built(kind, {})
    if made is None:  # SparseAdam and others that take no second group or no dense tensor
        made = kind(tensors()[:1], lr=0.1), []  # type: ignore[call-arg]
    return all(group.is_known for group in describe(made[0]))


def altered(group: GroupDescription, path: str, value: Any) -> GroupDescription:
    """A description with one word changed."""
    part, _, name = path.partition(".")
    if not name:
        return dataclasses.replace(group, **{part: value})
    return dataclasses.replace(group, **{part: dataclasses.replace(getattr(group, part), **{name: value})})


WRONG: list[tuple[type[Optimizer], Settings, str, Any]] = [
    (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}, "momentum.starts_whole", False),
    (torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.2}, "momentum.form", "nesterov"),
    (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}, "momentum.dampening", 0.0),
    (torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.2}, "decay.form", "decoupled"),
    (torch.optim.SGD, {"maximize": True}, "maximize", False),
    (torch.optim.Adam, {}, "momentum.bias_corrected", False),
    (torch.optim.Adam, {}, "preconditioner.bias_corrected", False),
    (torch.optim.Adam, {"amsgrad": True, "betas": (0.7, 0.8)}, "preconditioner.keeps_maximum", False),
    (torch.optim.Adagrad, {"lr_decay": 0.1}, "rate_decay", 0.0),
    (torch.optim.RMSprop, {"centered": True, "alpha": 0.6, "eps": 0.01}, "preconditioner.centered", False),
    (LARS, {}, "scaling.divisor", "sum"),
    (LARS, {"trust_clip": True, "eta": 0.3}, "scaling.clip", "none"),
    (LARS, {"lars_adaptation_filter": True}, "scaling.spares_vectors", False),
    (TVLARS, {"lmbda": 0.3}, "scaling.phi", None),
    (TVLARS, {"eta": 0.3}, "scaling.weight_cap", 1.0),
    (LAMB, {"weight_decay": 0.2}, "decay.form", "coupled"),
    (timm.optim.Lamb, {"max_grad_norm": 0.5}, "max_grad_norm", None),
    (timm.optim.Lars, {"weight_decay": 0.2, "trust_coeff": 0.3}, "scaling.idle_without", "divisor"),
    (pytorch_optimizer.Lamb, {}, "momentum.rate_corrected", False),
    (timm.optim.Lion, {}, "momentum.output_beta", None),
    (timm.optim.Lion, {}, "preconditioner.kind", "none"),
    (timm.optim.NvNovoGrad, {}, "preconditioner.kind", "rmsprop"),
    (timm.optim.NvNovoGrad, {}, "preconditioner.whole", "first"),
    (timm.optim.NvNovoGrad, {"weight_decay": 0.2}, "decay.form", "coupled"),
    (pytorch_optimizer.NovoGrad, {}, "preconditioner.whole", "zero"),
    (pytorch_optimizer.NovoGrad, {"grad_averaging": True}, "momentum.starts_whole", False),
]


@pytest.mark.parametrize(("kind", "settings", "path", "value"), WRONG, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_wrong_word_is_found_out(kind: type[Optimizer], settings: Settings, path: str, value: Any) -> None:
    """Otherwise the experiment would prove nothing."""
    made = built(kind, settings)
    assert made is not None
    wrong = tuple(altered(group, path, value) for group in describe(made[0]))
    assert wrong != describe(made[0])
    assert deviation(*made, wrong) > 1e-6


class Renamed(torch.optim.SGD):
    """Adds what is its own, and steps as its parent does."""

    def describe_me(self) -> str:
        return "mine"


class Doubled(torch.optim.SGD):
    """Makes another step than its parent."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step(closure)


class Registered(torch.optim.SGD):
    """Makes another step than its parent, and says which."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] *= 0.5
        made = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 2.0
        return made


@describe.register
def _(optimizer: Registered) -> tuple[GroupDescription, ...]:
    return tuple(
        GroupDescription(optimizer="Registered", momentum=dataclasses.replace(group.momentum, beta=0.0))
        for group in describe(torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.1))
    )


def test_a_subclass_is_what_its_parent_is_unless_it_steps_otherwise() -> None:
    params = tensors()
    kept, other = Renamed(params, lr=0.1, momentum=0.8), Doubled(params, lr=0.1, momentum=0.8)
    for optimizer in (kept, other, torch.optim.SGD(params, lr=0.1)):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()  # torch then wraps each class's step
    ((found,), (unknown,)) = describe(kept), describe(other)
    assert (found.optimizer, found.is_known) == ("Renamed", True)
    assert found.momentum == describe(torch.optim.SGD(params, lr=0.1, momentum=0.8))[0].momentum
    assert unknown == GroupDescription.unknown("Doubled", __name__)


def test_anybody_may_register_what_is_unknown() -> None:
    (found,) = describe(Registered(tensors(), lr=0.1))
    assert (found.optimizer, found.is_known, found.columns) == ("Registered", True, {"trust_ratio"})


def test_a_wrapper_is_seen_through_and_what_is_no_optimizer_is_refused() -> None:
    inner = LARS(tensors(), lr=0.1)
    assert describe(wrapped(inner)) == describe(inner)
    with pytest.raises(TypeError, match="int is no optimizer: it has no param_groups"):
        describe(3)


def test_a_version_of_a_package_that_computes_otherwise_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = pytorch_optimizer.LARS(tensors(), lr=0.1)
    assert describe(optimizer)[0].is_known
    monkeypatch.setattr("tvlars_probe.optimizers.foreign_rules.metadata.version", lambda _: "3.1.0")
    assert not describe(optimizer)[0].is_known


def test_a_group_that_lacks_a_setting_of_its_rule_is_unknown() -> None:
    optimizer = torch.optim.Adam(tensors(), lr=0.1)
    del optimizer.param_groups[0]["eps"]
    assert not describe(optimizer)[0].is_known


def test_settings_that_are_changed_are_described_anew() -> None:
    optimizer = torch.optim.SGD(tensors(), lr=0.1, momentum=0.9, weight_decay=0.1)
    live = LiveDescription(optimizer)
    first = live.groups
    optimizer.param_groups[0]["lr"] = 0.2
    live.renew()
    assert live.groups is first  # a rate is no part of it
    optimizer.param_groups[0]["weight_decay"] = 0.3
    live.renew()
    assert [group.decay.value for group in (*first, *live.groups)] == [0.1, 0.3]


def test_a_clipping_that_is_all_groups_own_is_not_a_groups_setting() -> None:
    """timm reads the optimizer's default, whatever stands in a group."""
    params = tensors()
    optimizer = timm.optim.Lamb([{"params": params, "max_grad_norm": 0.01}], lr=0.3, max_grad_norm=0.5)
    groups = describe(optimizer)
    assert groups[0].max_grad_norm == 0.5
    assert deviation(optimizer, params, groups) < 1e-10
