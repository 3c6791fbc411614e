"""Descriptions of other people's optimizers: registered ones, subclasses, and settings of any kind."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tvlars_probe import LARS, GroupDescription, Phi, Scaling, describe
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.description import Describe
from tvlars_probe.optimizers.group_entries import registered_name
from tvlars_probe.optimizers.layerwise import LayerwiseOptimizer

if TYPE_CHECKING:
    from pathlib import Path


def params() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (4,))]


def recorded(optimizer: torch.optim.Optimizer, path: Path, *, steps: int = 3, **settings: Any) -> tvlars_probe.Run:
    """A run of some steps with gradients that are the same in each."""
    generator = torch.Generator().manual_seed(4)
    with tvlars_probe.record(None, optimizer, path, **settings) as rec:
        for _ in range(steps):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            rec.log()
    return tvlars_probe.open_run(path)


class Plain(torch.optim.SGD):
    """A class of its own, to be described."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Signed(Plain):
    """Steps by the gradient's sign."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.sign_()
        return super().step(closure)


class Named(Plain):
    """Only its name is another."""


def scaled(**words: Any) -> GroupDescription:
    return GroupDescription(optimizer="?", scaling=Scaling(kind="trust-ratio", **words))


def test_a_subclass_of_a_registered_class_is_described_unless_it_steps_otherwise() -> None:
    asked = Describe()
    asked.register(Plain, lambda optimizer: [scaled(divisor="grad")] * len(optimizer.param_groups))
    (named,), (signed,) = asked(Named(params(), lr=0.1)), asked(Signed(params(), lr=0.1))
    assert (named.optimizer, named.module, named.scaling.divisor) == ("Named", __name__, "grad")
    assert signed == GroupDescription.unknown("Signed", __name__)


def test_what_is_registered_for_a_class_is_not_said_of_a_nearer_described_one() -> None:
    """AdamW has its own rule, also where somebody describes Adam anew."""
    asked = Describe()
    asked.register(torch.optim.Adam, lambda _: (GroupDescription(optimizer="?", rate_decay=0.5),))
    (adam,), (adamw,) = asked(torch.optim.Adam(params())), asked(torch.optim.AdamW(params()))
    assert (adam.optimizer, adam.rate_decay) == ("Adam", 0.5)
    assert (adamw.optimizer, adamw.decay.form, adamw.rate_decay) == ("AdamW", "decoupled", 0.0)


@pytest.mark.parametrize("answer", [(), [scaled(), scaled()], None, (3,)], ids=str)
def test_a_registered_function_that_describes_no_group_is_refused(answer: Any) -> None:
    asked = Describe()
    asked.register(Plain, lambda _: answer)
    with pytest.raises(UserError, match="for Plain must return a tuple of one GroupDescription per parameter group, 1"):
        asked(Plain(params(), lr=0.1))


def test_a_namesake_of_ours_is_not_ours() -> None:
    """A replay must not take a stranger's LARS for `tvlars_probe.LARS`."""
    asked, stranger = Describe(), type("LARS", (torch.optim.SGD,), {"__module__": "theirs"})
    asked.register(stranger, lambda _: (scaled(eta=0.02),))
    (found,) = asked(stranger(params(), lr=0.1))
    assert (found.optimizer, found.module) == ("LARS", "theirs")
    assert registered_name(dataclasses.asdict(found)) is None


class Maximizing(torch.optim.Optimizer):
    """w ← w + lr·q·(g − λw) with q = 0.01·‖w‖/‖g − λw‖, where ``clip`` bounds the norm of all g."""

    def __init__(self, params: Any, clip: float | None = None) -> None:
        super().__init__(params, {"lr": 0.1, "clip": clip})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            total = torch.stack([p.grad.double().norm() for p in trained]).norm()
            factor = 1.0 if group["clip"] is None else 1 / max(1.0, float(total) / group["clip"])
            for p in trained:
                direction = -factor * p.grad + 0.5 * p
                q = 0.01 * p.norm() / direction.norm()
                self.state[p] = {"q": float(q), "norm": float(direction.norm())}
                p.sub_(direction, alpha=float(group["lr"] * q))


@describe.register
def _(optimizer: Maximizing) -> tuple[GroupDescription, ...]:
    decay = tvlars_probe.Decay(form="coupled", value=0.5)
    q = Scaling(kind="trust-ratio", eta=0.01)
    return tuple(
        GroupDescription(optimizer="", scaling=q, decay=decay, maximize=True, max_grad_norm=group["clip"])
        for group in optimizer.param_groups
    )


@pytest.mark.parametrize("clip", [None, 0.01, 1e6])
def test_a_ratio_is_that_of_the_gradient_as_the_optimizer_takes_it(clip: float | None, tmp_path: Path) -> None:
    held = params()
    optimizer = Maximizing([*held, torch.nn.Parameter(torch.ones(2))], clip)
    with tvlars_probe.record(None, optimizer, tmp_path / "r") as rec:
        for p in held:  # the last tensor has no gradient
            p.grad = torch.ones_like(p)
        optimizer.step()
        rec.log()
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    used = [optimizer.state[p] for p in held]
    assert rows["trust_ratio"].tolist() == pytest.approx([one["q"] for one in used], rel=1e-5)
    assert rows["direction_norm"].tolist() == pytest.approx([one["norm"] for one in used], rel=1e-5)


def test_an_optimizer_that_maximizes_has_no_applied_rates() -> None:
    optimizer = torch.optim.SGD(params(), lr=0.1, maximize=True)
    found = tvlars_probe.applied_rates(None, optimizer)
    assert found.limit is None
    assert all(rate.isnan().all() for rate in found.rates.values())


class Tuned(Plain):
    """Keeps a setting on itself, as its description reads it."""

    eta = 0.01


@describe.register
def _(optimizer: Tuned) -> tuple[GroupDescription, ...]:
    return tuple(scaled(eta=optimizer.eta, divisor="grad") for _ in optimizer.param_groups)


def test_a_setting_on_the_optimizer_itself_is_followed(tmp_path: Path) -> None:
    optimizer = Tuned(params(), lr=0.1)
    ratios = []
    with tvlars_probe.record(None, optimizer, tmp_path / "r") as rec:
        for eta in (0.01, 0.05):
            optimizer.eta = eta
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
                ratios.append(eta * (p.norm() / p.grad.norm()).item())
            optimizer.step()
            rec.log()
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    assert rows["trust_ratio"].tolist() == pytest.approx(ratios, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scaled(eta=float("nan")), r"Scaling.eta is nan \(allowed: float\)"),
        (lambda: scaled(weight_cap="ten"), r"Scaling.weight_cap is 'ten' \(allowed: float | None\)"),
        (lambda: GroupDescription(optimizer="?", scaling=Scaling(kind="shape")), "needs its shape"),
        (lambda: GroupDescription(optimizer="?", update_norm="buffer"), "needs momentum.buffer"),
    ],
)
def test_a_description_that_lacks_something_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_phi_of_an_optimizer_that_tells_no_count_gives_no_ratio() -> None:
    group = scaled(phi=Phi(lmbda=0.1))
    assert group.columns == frozenset()
    assert dataclasses.replace(group, norms="last_step").columns == {"trust_ratio", "direction_norm", "phi"}


def test_a_subclass_of_ours_that_only_has_another_name_is_described() -> None:
    kind = type("Mine", (LARS,), {"note": "its own"})
    (found,) = describe(kind(params(), lr=0.1))
    assert (found.optimizer, found.is_known, found.scaling.kind) == ("Mine", True, "trust-ratio")


def test_a_layer_wise_optimizer_without_an_update_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="_update_on_device"):
        LayerwiseOptimizer(params(), {"lr": 0.1, "weight_decay": 0.0})  # type: ignore[abstract]


class Capped(LARS):
    """Another clamp than LARS': its rule isn't known, but it says what it used."""

    norm_cap = 0.5


def test_a_subclass_of_ours_that_steps_otherwise_keeps_its_own_ratio(tmp_path: Path) -> None:
    optimizer = Capped(params(), lr=0.1)
    with pytest.warns(UserWarning, match="what Capped does to a rate isn't known, so that the applied rates are"):
        run = recorded(optimizer, tmp_path / "r", steps=1)
    assert not describe(optimizer)[0].is_known
    assert run.layers()["trust_ratio"].tolist() == pytest.approx(optimizer.last_step.trust_ratio.tolist())


@pytest.mark.parametrize(
    "settings",
    [
        {"eta": "auto"}, {"eta": (0.5, 1.2)}, {"alpha": None, "delay": None}, {"weight_decay": torch.tensor(0.5)},
        {"eta": torch.ones(2)}, {"eps": (1e-8, 1e-3)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_any_kind_leave_a_manifest_that_loads(settings: dict[str, Any], tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(params(), lr=0.1)
    optimizer.param_groups[0].update(settings)
    (group,) = recorded(optimizer, tmp_path / "r").manifest.groups
    assert group["weight_decay"] == float(settings.get("weight_decay", 0.0))
    assert group["phi"] is None


def test_settings_that_torch_takes_from_elsewhere_are_described_from_there() -> None:
    group = {"params": params(), "initial_accumulator_value": 5.0}
    (adagrad,) = describe(torch.optim.Adagrad([group], initial_accumulator_value=0.25))
    assert adagrad.preconditioner.start == 0.25
    group = {"params": params(), "weight_decay": 0.5, "decoupled_weight_decay": False}
    (adamw,) = describe(torch.optim.AdamW([group]))
    assert adamw.decay.form == "coupled"
    (other,) = describe(torch.optim.Adam([{"params": params(), "eps": (1e-8,)}]))
    assert not other.is_known


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_torchs_muon_takes_no_kernel_of_four_dimensions() -> None:
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 3, 2, 2))])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muons_other_iterations_are_unknown() -> None:
    assert describe(torch.optim.Muon(params()[:1]))[0].is_known
    assert not describe(torch.optim.Muon(params()[:1], ns_steps=1))[0].is_known
    assert not describe(torch.optim.Muon(params()[:1], ns_coefficients=(3.0, -4.0, 2.0)))[0].is_known
