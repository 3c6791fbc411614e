"""torch's optimizers, as descriptions: from the settings of a parameter group to a `GroupDescription`. Needs no torch.

A rule is a function of a group's settings, by the names that the class gives them. What it returns is tested by
experiment: the description must reproduce the class's updates (``tests/optimizers/test_description.py``). A class that
isn't in the table is unknown, and so is a group for which its rule returns None: one with a setting that a description
has no words for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvlars_probe.optimizers.group_description import Decay, GroupDescription, Momentum, Preconditioner, Scaling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Settings = Mapping[str, Any]
    Rule = Callable[[Settings], GroupDescription | None]


def number(value: Any) -> float:
    """A hyperparameter as a float, also where it is kept as a tensor; NaN where there is none."""
    if value is None:
        return math.nan
    return float(value.item() if hasattr(value, "item") else value)


def number_or_none(value: Any) -> float | None:
    """The same, None where there is none: of settings that an older manifest doesn't hold."""
    return None if value is None else number(value)


def decay(settings: Settings, form: str, **further: Any) -> Decay:
    """``weight_decay`` in a form; none where it is zero."""
    value = number(settings.get("weight_decay") or 0.0)
    return Decay(form=form, value=value, **further) if value else Decay()  # type: ignore[arg-type]


def heavy_ball(settings: Settings, **further: Any) -> Momentum:
    """``momentum``, ``dampening`` and ``nesterov`` as torch's SGD names them; none where momentum is zero."""
    beta, dampening = (_plain(settings.get(name, 0.0)) for name in ("momentum", "dampening"))
    if not beta:
        return Momentum()
    form: Any = "nesterov" if settings.get("nesterov") else "heavy-ball"
    return Momentum(form=form, beta=beta, dampening=dampening, buffer="momentum_buffer", **further)


def _plain(value: Any) -> float:
    """A setting as it stands in the group, 0 or 0.0: a manifest keeps it so."""
    return value if isinstance(value, int | float) else number(value or 0.0)


def _sgd(settings: Settings) -> GroupDescription:
    momentum = heavy_ball(settings, starts_whole=True)
    return GroupDescription(
        optimizer="SGD",
        momentum=momentum,
        decay=decay(settings, "coupled"),
        maximize=bool(settings.get("maximize")),
        update_norm="buffer" if momentum.form == "heavy-ball" else "weights",
    )


def adam(settings: Settings, *, optimizer: str = "Adam", form: str = "coupled") -> GroupDescription:
    """Adam (Kingma and Ba 2015) with decay in a form; AMSGrad by its setting."""
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
    return adam(settings, form="decoupled" if settings.get("decoupled_weight_decay") else "coupled")


def _adamw(settings: Settings) -> GroupDescription:
    return adam(settings, optimizer="AdamW", form="decoupled")


def _adagrad(settings: Settings) -> GroupDescription:
    return GroupDescription(
        optimizer="Adagrad",
        decay=decay(settings, "coupled"),
        preconditioner=Preconditioner(
            kind="adagrad",
            eps=number(settings["eps"]),
            start=number(settings.get("initial_accumulator_value") or 0.0),
            second_moment="sum",
        ),
        maximize=bool(settings.get("maximize")),
        rate_decay=number(settings.get("lr_decay") or 0.0),
    )


def _rmsprop(settings: Settings) -> GroupDescription:
    centered = bool(settings.get("centered"))
    return GroupDescription(
        optimizer="RMSprop",
        momentum=heavy_ball({"momentum": settings.get("momentum")}),
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


def _muon(settings: Settings) -> GroupDescription:
    return GroupDescription(
        optimizer="Muon",
        momentum=Momentum(
            form="moving-average",
            beta=number(settings["momentum"]),
            over="gradient",
            lookahead=bool(settings["nesterov"]),
        ),
        decay=decay(settings, "decoupled"),
        preconditioner=Preconditioner(kind="matrix", eps=number(settings["eps"])),
        scaling=Scaling(kind="shape", shape=settings.get("adjust_lr_fn") or "original"),
    )


TORCH: dict[str, Rule] = {
    "torch.optim.sgd.SGD": _sgd,
    "torch.optim.adam.Adam": _adam,
    "torch.optim.adamw.AdamW": _adamw,
    "torch.optim.adagrad.Adagrad": _adagrad,
    "torch.optim.rmsprop.RMSprop": _rmsprop,
    "torch.optim.Muon": _muon,
}
"""By the class's full name. torch's others (Adadelta, Adafactor, Adamax, ASGD, LBFGS, NAdam, RAdam, Rprop, SparseAdam)
do what a description has no words for."""
