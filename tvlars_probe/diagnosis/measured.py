"""What an optimizer does, by experiment, beside what `tvlars_probe.describe` says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tvlars_probe.diagnosis.results import Observed
from tvlars_probe.diagnosis.subject import drawn, updates, weights
from tvlars_probe.optimizers.description import describe

if TYPE_CHECKING:
    from tvlars_probe.diagnosis.subject import TriedOptimizer
    from tvlars_probe.optimizers.group_description import GroupDescription

_SHAPE, _LEVER, _SETTLED = (8, 8), 0.01, 60
_CLOSE = 0.02
"""Difference of two measured figures within which they are the same."""


@dataclass(frozen=True)
class MeasuredUpdates:
    """What was measured of updates of one matrix, in float64, without weight decay.

    Attributes:
        gradient_power: a, where ‖Δw‖ of a first step is proportional to ‖g‖^a.
        weight_power: the same of ‖w‖: 1 shows a trust ratio.
        fading: ‖Δw‖ of a step as a share of the one before, once the gradient is zero: the momentum's β, unless a ratio
            of norms takes the fading away; 0 without momentum, NaN where it can't be told.
        form: what the first update is: "along the gradient", "of signs", "orthogonal" or "other".
        decay: ‖Δw‖ of a first step that weight decay alone makes, in units of lr·λ·‖w‖; NaN where there is no decay.
    """

    gradient_power: float
    weight_power: float
    fading: float
    form: str
    decay: float

    def lines(self) -> tuple[str, ...]:
        """It in words."""
        return (
            f"first update: {self.form}",
            f"‖Δw‖ goes with ‖g‖ to the power {self.gradient_power:.2f}, with ‖w‖ to the power {self.weight_power:.2f}",
            "no momentum" if not self.fading else f"once the gradient is zero, updates fade by {self.fading:.4g} a step"
            if self.fading == self.fading else "how updates fade once the gradient is zero can't be told",
            *([f"decay alone moves weights by {self.decay:.3g}·lr·λ·‖w‖"] if self.decay == self.decay else []),
        )  # fmt: skip


def measured(subject: TriedOptimizer) -> MeasuredUpdates:
    """Make the measurements."""
    (w,), (g,) = weights([_SHAPE]), drawn([_SHAPE], cycle=1)(0)
    plain = _undecayed(subject)
    first = _first(subject, w, g, plain)
    size = first.norm().item()
    powers = [
        math.log(_first(subject, v, h, plain).norm().item() / size) / math.log(_LEVER) if size else math.nan
        for v, h in ((w, _LEVER * g), (_LEVER * w, g))
    ]
    decay = math.nan
    lr = subject.defaults().get("lr")
    if plain and isinstance(lr, float):
        alone = _first(subject, w, 0 * g, {"weight_decay": 0.01}).norm().item()
        decay = alone / (lr * 0.01 * w.norm().item())
    return MeasuredUpdates(
        gradient_power=powers[0],
        weight_power=powers[1],
        fading=_fading(subject, w, g, plain),
        form=_form(first, g),
        decay=decay,
    )


def _undecayed(subject: TriedOptimizer) -> dict[str, Any]:
    """Settings without weight decay, where the class has any."""
    return {"weight_decay": 0.0} if "weight_decay" in subject.defaults() else {}


def _first(subject: TriedOptimizer, w: Tensor, g: Tensor, settings: dict[str, Any]) -> Tensor:
    p = nn.Parameter(w.detach().clone())
    return updates(subject.made([[p]], settings), [p], lambda _: [g], 1)[0][0]


def _fading(subject: TriedOptimizer, w: Tensor, g: Tensor, settings: dict[str, Any]) -> float:
    p = nn.Parameter(w.detach().clone())
    optimizer = subject.made([[p]], settings)
    updates(optimizer, [p], lambda _: [g], _SETTLED, holds=True)
    one, two, three = (u[0].norm().item() for u in updates(optimizer, [p], lambda _: [0 * g], 3, holds=True))
    if one == 0:
        return 0.0
    fading = three / two if two else math.nan
    return fading if fading < 1 - _CLOSE and abs(fading - two / one) < _CLOSE else math.nan


def _form(update: Tensor, g: Tensor) -> str:
    if not update.any():
        return "other"
    if torch.allclose(-update / update.norm(), g / g.norm(), rtol=1e-6, atol=1e-9):
        return "along the gradient"
    if (update.abs() / update.abs().max()).min() > 1 - 1e-3:
        return "of signs"
    values = torch.linalg.svdvals(update)
    return "orthogonal" if values[-1] > 0.5 * values[0] else "other"


def description_holds(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Does what `describe` says of the class agree with what was measured?"""
    subject.must_move()
    (told,) = describe(subject.made([weights([_SHAPE])], _undecayed(subject)))
    if not told.is_known:
        return Observed("not applicable", "describe has no rule of this class")
    if dtype != torch.float64:
        return Observed("right", "compared in float64")
    found, wrong = measured(subject), []
    beta = told.momentum.beta if told.momentum.form != "none" else 0.0
    # Beside a ratio over the whole direction, or a sign, momentum fades otherwise than by β. What Adam's √v̂ changes
    # meanwhile is less than `_CLOSE`; NaN compares as false.
    if _fades_by_beta(told) and abs(found.fading - beta) > _CLOSE:
        wrong.append(f"momentum {beta:g} is described, and updates fade by {found.fading:.4g}")
    scaled = bool(told.adapts(2))
    # A clipped ratio may be the clip alone, which doesn't depend on ‖w‖.
    if told.scaling.clip == "none" and scaled != (found.weight_power > 0.5):
        said = "a trust ratio is" if scaled else "no trust ratio is"
        wrong.append(f"{said} described, and ‖Δw‖ goes with ‖w‖ to the power {found.weight_power:.2f}")
    if wrong:
        return Observed("wrong", "; ".join(wrong))
    return Observed("right", "momentum and trust ratio are as describe says")


def _fades_by_beta(told: GroupDescription) -> bool:
    of_gradient = told.scaling.direction == "gradient" and told.momentum.output_beta is None
    return of_gradient and told.preconditioner.kind not in ("sign", "norm", "matrix")


def described(subject: TriedOptimizer) -> tuple[str, ...]:
    """What was measured, and what `tvlars_probe.describe` says, in lines; nothing where the class can't be tried."""
    if subject.refusal is not None:
        return ()
    try:
        lines = measured(subject).lines()
    except Exception as error:  # a stranger's class may raise anything
        lines = (f"what it does can't be measured: {type(error).__name__}",)
    (told,) = describe(subject.made([weights([_SHAPE])]))
    return (*lines, f"tvlars_probe.describe: {_words(told)}")


def _words(told: GroupDescription) -> str:
    """A description in a line."""
    if not told.is_known:
        return "unknown (tvlars_probe.describe.register teaches it)"
    m, d, p, s = told.momentum, told.decay, told.preconditioner, told.scaling
    parts = [
        "no momentum" if m.form == "none" else f"{m.form} momentum {m.beta:g}",
        "no decay" if d.form == "none" else f"{d.form} decay {d.value:g}",
        *([] if p.kind == "none" else [f"preconditioner {p.kind}"]),
        "no scaling" if s.kind == "none" else f"scaling by {s.kind}" + (f", eta {s.eta:g}" if s.eta != 1 else ""),
        *([f"φ with λ {s.phi.lmbda:g}"] if s.phi is not None else []),
    ]
    return ", ".join(parts)
