"""Rules for torch's optimizers. Needs no torch.

A rule is a function that makes a `GroupDescription` from a parameter group's settings, under the names that the class
gives them. Rules are tested by experiment: the description must reproduce the class's updates
(``tests/optimizers/test_description.py``). A class without a rule is unknown. So is a group for which the rule returns
None, because a description can't express one of its settings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvlars_probe.optimizers.description_words import Decay, Momentum, Preconditioner, Scaling
from tvlars_probe.optimizers.group_description import GroupDescription

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Settings = Mapping[str, Any]
    Rule = Callable[[Settings], GroupDescription | None]


def number(value: Any) -> float:
    """A hyperparameter as a float, also one that is kept as a tensor; NaN for None."""
    if value is None:
        return math.nan
    return float(value.item() if hasattr(value, "item") else value)


def number_or_none(value: Any) -> float | None:
    """`number`, but None for None: an older manifest doesn't hold the setting."""
    return None if value is None else number(value)


def decay(settings: Settings, form: str, **further: Any) -> Decay:
    """The group's ``weight_decay``, applied in this form; no decay where it is zero."""
    value = number(settings.get("weight_decay") or 0.0)
    return Decay(form=form, value=value, **further) if value else Decay()  # type: ignore[arg-type]


def heavy_ball(settings: Settings, **further: Any) -> Momentum:
    """Momentum from the settings that torch's SGD calls ``momentum``, ``dampening`` and ``nesterov``."""
    beta, dampening = (_plain(settings.get(name, 0.0)) for name in ("momentum", "dampening"))
    if not beta:
        return Momentum()
    form: Any = "nesterov" if settings.get("nesterov") else "heavy-ball"
    return Momentum(form=form, beta=beta, dampening=dampening, buffer="momentum_buffer", **further)


def _plain(value: Any) -> float:
    """A setting as the group holds it: an int stays an int, and the manifest shows it as the user gave it."""
    return value if isinstance(value, int | float) else number(value or 0.0)


def _sgd(settings: Settings) -> GroupDescription:
    momentum = heavy_ball(settings, starts_whole=True)
    return GroupDescription(
        optimizer="SGD",
        momentum=momentum,
        decay=decay(settings, "coupled"),
        maximize=bool(settings.get("maximize")),
        # In Nesterov's form the buffer is not the direction.
        update_norm="buffer" if momentum.form == "heavy-ball" else "weights",
    )


def adam(settings: Settings, *, optimizer: str = "Adam", form: str = "coupled") -> GroupDescription:
    """Adam (Kingma and Ba 2015), or AMSGrad where that is switched on, with decay of this form."""
    beta1, beta2 = settings["betas"]
    keeps_maximum = bool(settings.get("amsgrad"))
    return GroupDescription(
        optimizer=optimizer,
        momentum=Momentum(form="moving-average", beta=number(beta1), over="gradient", bias_corrected=True),
        decay=decay(settings, form),
        preconditioner=Preconditioner(
            kind="adam",
            beta=number_or_none(beta2),
            eps=number(settings["eps"]),
            bias_corrected=True,
            keeps_maximum=keeps_maximum,
            second_moment="max_exp_avg_sq" if keeps_maximum else "exp_avg_sq",
        ),
        maximize=bool(settings.get("maximize")),
    )


def _adam(settings: Settings) -> GroupDescription:
    # torch's AdamW is an Adam with this setting.
    return adam(settings, form="decoupled" if settings.get("decoupled_weight_decay") else "coupled")


def _adamw(settings: Settings) -> GroupDescription:
    # Its groups can switch this off, and are Adam's then.
    return adam(
        settings, optimizer="AdamW", form="decoupled" if settings.get("decoupled_weight_decay", True) else "coupled"
    )


def _adagrad(settings: Settings) -> GroupDescription:
    return GroupDescription(
        optimizer="Adagrad",
        decay=decay(settings, "coupled"),
        preconditioner=Preconditioner(
            kind="adagrad",
            eps=number(settings["eps"]),
            # torch fills the state by the constructor's value, whatever a group says.
            start=number(settings.get("defaults", settings).get("initial_accumulator_value") or 0.0),
            second_moment="sum",
        ),
        maximize=bool(settings.get("maximize")),
        rate_decay=number(settings.get("lr_decay") or 0.0),
    )


def _rmsprop(settings: Settings) -> GroupDescription:
    centered = bool(settings.get("centered"))
    return GroupDescription(
        optimizer="RMSprop",
        momentum=heavy_ball({"momentum": settings.get("momentum")}),  # undamped, and its buffer starts at zero
        decay=decay(settings, "coupled"),
        preconditioner=Preconditioner(
            kind="rmsprop",
            beta=number_or_none(settings.get("alpha")),
            eps=number(settings["eps"]),
            centered=centered,
            second_moment="square_avg",
            first_moment="grad_avg" if centered else None,
        ),
        maximize=bool(settings.get("maximize")),
    )


def _muon(settings: Settings) -> GroupDescription | None:
    # Other iterations make other matrices, of which a description has no words.
    if (settings.get("ns_steps", 5), tuple(settings.get("ns_coefficients", _NEWTON_SCHULZ))) != (5, _NEWTON_SCHULZ):
        return None
    return GroupDescription(
        optimizer="Muon",
        momentum=Momentum(
            form="moving-average",
            beta=number(settings["momentum"]),  # its buffer is a moving average, in spite of the name
            over="gradient",
            lookahead=bool(settings["nesterov"]),
        ),
        decay=decay(settings, "decoupled"),
        preconditioner=Preconditioner(kind="matrix", eps=number(settings["eps"])),
        scaling=Scaling(kind="shape", shape=settings.get("adjust_lr_fn") or "original"),
    )


_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""torch's coefficients of Muon's iteration (Jordan 2024)."""

TORCH: dict[str, Rule] = {
    "torch.optim.sgd.SGD": _sgd,
    "torch.optim.adam.Adam": _adam,
    "torch.optim.adamw.AdamW": _adamw,
    "torch.optim.adagrad.Adagrad": _adagrad,
    "torch.optim.rmsprop.RMSprop": _rmsprop,
    "torch.optim.Muon": _muon,  # torch sets this class's __module__ to "torch.optim"
}
"""The rule of each class, by the class's full name.

A description can't express torch's other optimizers (Adadelta, Adafactor, Adamax, ASGD, LBFGS, NAdam, RAdam, Rprop,
SparseAdam).
"""
