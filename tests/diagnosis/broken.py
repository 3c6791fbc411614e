"""A sound optimizer, and many that are it with one fault; and three of other packages, re-made with their faults."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from tvlars_probe import GroupDescription, Momentum, Scaling, describe

if TYPE_CHECKING:
    from torch import Tensor

    Group = dict[str, Any]


class Sound(Optimizer):
    """A trust ratio over momentum: d = g + λw, q = eta·‖w‖/‖d‖, m ← β·m + q·d, w ← w − lr·m."""

    eta = 0.01

    def __init__(
        self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.01,
        foreach: bool | None = None,
    ) -> None:  # fmt: skip
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "foreach": foreach, "t": 0}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["t"] += 1
            for p in group["params"]:
                if self.takes(group, p):
                    self.update(group, p)

    def takes(self, group: Group, p: Tensor) -> bool:
        return p.grad is not None

    def update(self, group: Group, p: Tensor) -> None:
        assert p.grad is not None
        d = p.grad.add(p, alpha=self.decay(group))
        m = self.buffer(p, d)
        m.mul_(group["momentum"]).add_(d * self.ratio(group, p, d))
        p.add_(m, alpha=-self.rate(group))

    def decay(self, group: Group) -> float:
        value: float = group["weight_decay"]
        return value

    def rate(self, group: Group) -> float:
        value: float = group["lr"]
        return value

    def buffer(self, p: Tensor, d: Tensor) -> Tensor:
        found: Tensor = self.state[p].setdefault("m", torch.zeros_like(p))
        return found

    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        w, n = p.norm(), d.norm()
        return torch.where((w > 0) & (n > 0), self.eta * w / n, 1.0)


class GradientOverwritten(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        super().update(group, p)
        assert p.grad is not None
        p.grad.copy_(self.state[p]["m"])


class GradientDecayed(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        super().update(group, p)
        assert p.grad is not None
        p.grad.add_(p, alpha=group["weight_decay"])


class GradientCleared(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        super().update(group, p)
        p.grad = None


class MomentumSeededRaw(Sound):
    def buffer(self, p: Tensor, d: Tensor) -> Tensor:
        found: Tensor = self.state[p].setdefault("m", d.clone())
        return found


class CountForgotten(Sound):
    count = 0

    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        self.count += 1
        return super().ratio(group, p, d) / (0.1 + math.exp(0.001 * self.count))


class BuffersOutsideTheState(Sound):
    def buffer(self, p: Tensor, d: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept: dict[Tensor, Tensor] = {}
        return self.kept.setdefault(p, torch.zeros_like(p))


class FactorDies(Sound):
    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return super().ratio(group, p, d) / (0.1 + torch.exp(torch.tensor(1.0 * group["t"])))


class FactorRaises(Sound):
    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return super().ratio(group, p, d) * min(1.0, math.exp(10.0 * group["t"]))


class FactorBecomesNan(Sound):
    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        t = torch.tensor(float(group["t"]))
        return super().ratio(group, p, d) * torch.exp(t) * torch.exp(-t)


class RateOfTheDefaults(Sound):
    def rate(self, group: Group) -> float:
        return super().rate(self.defaults)


class RateOfTheFirstGroup(Sound):
    def rate(self, group: Group) -> float:
        return super().rate(self.param_groups[0])


class RateOfTheLastGroup(Sound):
    def rate(self, group: Group) -> float:
        return super().rate(self.param_groups[-1])


class RateOfTheConstruction(Sound):
    def __init__(self, params: Any, lr: float = 0.1, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        self.rates = [group["lr"] for group in self.param_groups]

    def rate(self, group: Group) -> float:
        return float(next(r for r, own in zip(self.rates, self.param_groups, strict=True) if own is group))


class DecayOfTheDefaults(Sound):
    def decay(self, group: Group) -> float:
        return super().decay(self.defaults)


class VectorsAtFullRate(Sound):
    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return super().ratio(group, p, d) if p.ndim > 1 else 1.0


class UndecayedAtFullRate(Sound):
    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return super().ratio(group, p, d) if group["weight_decay"] else 1.0


class ForeachWithoutDecay(Sound):
    def decay(self, group: Group) -> float:
        return 0.0 if group["foreach"] else super().decay(group)


class ForeachOfTheFirstRate(Sound):
    def rate(self, group: Group) -> float:
        return super().rate(self.param_groups[0] if group["foreach"] else group)


class ZeroOverZero(Sound):
    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return self.eta * p.norm() / d.norm()


class RefusesZero(Sound):
    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return self.eta / (d.norm() / p.norm()).item() if p.any() else self.eta / p.norm().item()


class NoneRaises(Sound):
    def takes(self, group: Group, p: Tensor) -> bool:
        return True

    def update(self, group: Group, p: Tensor) -> None:
        p.grad.mul(1.0)  # type: ignore[union-attr]
        super().update(group, p)


class NoneDecays(Sound):
    def takes(self, group: Group, p: Tensor) -> bool:
        if p.grad is None:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        return super().takes(group, p)


class NoneStopsTheOthers(Sound):
    def takes(self, group: Group, p: Tensor) -> bool:
        return all(q.grad is not None for q in group["params"])


class DTensorsPassedOver(Sound):
    def takes(self, group: Group, p: Tensor) -> bool:
        return super().takes(group, p) and not hasattr(p, "to_local")


class Misdescribed(Sound):
    """Its description has another momentum, and no trust ratio."""


@describe.register
def _(optimizer: Misdescribed) -> tuple[GroupDescription, ...]:
    momentum = Momentum(form="heavy-ball", beta=0.5)
    return tuple(GroupDescription(optimizer="Misdescribed", momentum=momentum) for _ in optimizer.param_groups)


class WellDescribed(Sound):
    """Its description is true."""


@describe.register
def _(optimizer: WellDescribed) -> tuple[GroupDescription, ...]:
    momentum, scaling = Momentum(form="heavy-ball", beta=0.9), Scaling(kind="trust-ratio", eta=0.01)
    told = GroupDescription(optimizer="WellDescribed", momentum=momentum, scaling=scaling)
    return tuple(told for _ in optimizer.param_groups)


class StepRaises(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        raise KeyError("exp_avg")


class SecondStepRaises(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        if group["t"] > 1:
            raise AttributeError("no foo")
        super().update(group, p)


class RaisesInDouble(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        torch.lerp(torch.zeros(()), p.sum(), 0.5)
        super().update(group, p)


class VectorsRaise(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        if p.ndim < 2:
            raise IndexError("Dimension out of range")
        super().update(group, p)


class MatricesAlone(Sound):
    """It refuses what is no matrix, as Muon does: no fault."""

    def __init__(self, params: Any, lr: float = 0.1, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("only 2D parameters are taken")


class NothingMoves(Sound):
    def takes(self, group: Group, p: Tensor) -> bool:
        return False


class VectorsStand(Sound):
    def takes(self, group: Group, p: Tensor) -> bool:
        return super().takes(group, p) and p.ndim > 1


class VectorsSlow(Sound):
    """Vectors move a twentieth as far on purpose: no fault."""

    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return super().ratio(group, p, d) * (1.0 if p.ndim > 1 else 0.05)


class GoesUp(Sound):
    def rate(self, group: Group) -> float:
        return -super().rate(group)


class ForeachRaises(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        if group["foreach"]:
            raise RuntimeError("expected scalar type Float but found Double")
        super().update(group, p)


class ForeachElsewhere(Sound):
    """Its kernel is for another device, and says so: no fault."""

    def update(self, group: Group, p: Tensor) -> None:
        if group["foreach"]:
            raise RuntimeError("foreach is not supported on this device")
        super().update(group, p)


class Noisy(Sound):
    """It draws random numbers: no fault."""

    def update(self, group: Group, p: Tensor) -> None:
        super().update(group, p)
        p.add_(torch.randn_like(p), alpha=1e-5 * self.rate(group))


class NoisyByItself(Noisy):
    """It draws from a generator that nobody can seed: no fault."""

    def update(self, group: Group, p: Tensor) -> None:
        Sound.update(self, group, p)
        p.add_(p * random.random(), alpha=-1e-6 * group["lr"])


class NoisyOfTheFirstRate(Noisy):
    def rate(self, group: Group) -> float:
        return super().rate(self.param_groups[0])


class ClosureAsked(Sound):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure() > 0:
            super().step()


class GraphAsked(Sound):
    def update(self, group: Group, p: Tensor) -> None:
        assert p.grad is not None
        if p.grad.grad_fn is None:
            raise RuntimeError("this gradient has no graph")
        super().update(group, p)


PLANTED: dict[type[Optimizer], set[str]] = {
    StepRaises: {"steps_made"},
    SecondStepRaises: {"steps_made"},
    RaisesInDouble: {"steps_made"},
    VectorsRaise: {"steps_made"},
    NothingMoves: {"steps_made", "factor_alive", "excluded_held", "lr_of_group", "decay_of_group"},
    VectorsStand: {"steps_made", "factor_alive", "excluded_held"},
    GoesUp: {"goes_down"},
    ForeachRaises: {"kernels_agree"},
    NoisyOfTheFirstRate: {"lr_of_group"},
    MatricesAlone: set(),
    VectorsSlow: set(),
    ForeachElsewhere: set(),
    Noisy: set(),
    NoisyByItself: set(),
    ClosureAsked: set(),
    GraphAsked: set(),
    GradientOverwritten: {"gradient_kept"},
    GradientDecayed: {"gradient_kept"},
    GradientCleared: {"gradient_kept"},
    MomentumSeededRaw: {"first_step"},
    CountForgotten: {"state_saved"},
    BuffersOutsideTheState: {"state_saved"},
    FactorDies: {"factor_alive"},
    FactorRaises: {"factor_alive"},
    FactorBecomesNan: {"factor_alive"},
    RateOfTheDefaults: {"lr_of_group"},
    RateOfTheFirstGroup: {"lr_of_group"},
    RateOfTheLastGroup: {"lr_of_group"},
    RateOfTheConstruction: {"lr_of_group"},
    DecayOfTheDefaults: {"decay_of_group"},
    VectorsAtFullRate: {"excluded_held"},
    UndecayedAtFullRate: {"excluded_held"},
    ForeachWithoutDecay: {"kernels_agree"},
    ForeachOfTheFirstRate: {"kernels_agree"},
    ZeroOverZero: {"zero_norms"},
    RefusesZero: {"zero_norms"},
    NoneRaises: {"none_gradients"},
    NoneDecays: {"none_gradients"},
    NoneStopsTheOthers: {"none_gradients"},
    DTensorsPassedOver: {"dtensors_agree"},
    Misdescribed: {"description_holds"},
}
"""Each with the checks that find its fault; all others find nothing."""


class OfficialTVLARS(Sound):
    """As released: φ in single precision by a count that isn't saved, norms clamped, vectors left out."""

    eta, count, lmbda = 0.001, 0, 0.2

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        super().step(closure)

    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        if p.ndim <= 1:
            return 1.0
        phi = 1 / (0.1 + torch.exp(torch.tensor(self.lmbda * self.count)))
        w, n = p.norm().clamp(max=10), d.norm().clamp(max=10)
        return torch.where((w > 0) & (n > 0), self.eta * phi * w / n, 1.0)


class KozistrLARS(Sound):
    """As pytorch_optimizer 3 has it: vectors left out, the buffer seeded with the raw gradient and left in p.grad."""

    eta = 0.001

    def buffer(self, p: Tensor, d: Tensor) -> Tensor:
        assert p.grad is not None
        found: Tensor = self.state[p].setdefault("m", p.grad.clone())
        return found

    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return super().ratio(group, p, d) if p.ndim > 1 else 1.0

    def update(self, group: Group, p: Tensor) -> None:
        super().update(group, p)
        assert p.grad is not None
        p.grad.copy_(self.state[p]["m"])


class TimmLARS(Sound):
    """As timm has it: what has no weight decay has no trust ratio."""

    eta = 0.001

    def ratio(self, group: Group, p: Tensor, d: Tensor) -> Any:
        return super().ratio(group, p, d) if group["weight_decay"] else 1.0


OF_OTHERS: dict[type[Optimizer], set[str]] = {
    OfficialTVLARS: {"state_saved", "factor_alive", "excluded_held"},
    KozistrLARS: {"gradient_kept", "first_step", "excluded_held"},
    TimmLARS: {"excluded_held"},
}
"""The faults that these packages' optimizers have."""
