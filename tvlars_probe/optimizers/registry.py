"""Optimizers that `train` knows by name: the settings that each takes, and what each does to a parameter group.

A new optimizer needs one `OptimizerEntry` in `OPTIMIZERS` and a rule, a function from the settings to a
`GroupDescription`. Everything else follows from these. Needs no torch: a class is loaded when an optimizer is built.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import UserError, unknown
from tvlars_probe.optimizers.description_words import NORM_CAP, Decay, Momentum, Phi, Preconditioner, Scaling
from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.hidden_matrices import hidden_matrices
from tvlars_probe.optimizers.rules import TORCH, decay, heavy_ball, number, number_or_none

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.optimizers.rules import Rule, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerEntry:
    """A known optimizer.

    Attributes:
        path: full name of its class.
        rule: makes a description from the settings of a parameter group.
        default_lr: learning rate where the user gives none.
        settings: fields of `OptimizerConfig` that the optimizer takes, besides lr.
        colour: its colour in charts, from the palette of Okabe and Ito (2008) or, once that is used up, from Tol's
            muted tones (2021).
        fixed: keyword arguments that its class always gets.
        defaults: the class's own defaults of the settings that its rule reads and `train` doesn't give.
        rests: names of the optimizers that may take the parameters that this one doesn't take; () where it takes all.
    """

    path: str
    rule: Rule
    default_lr: float
    settings: tuple[str, ...]
    colour: str
    fixed: tuple[tuple[str, Any], ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    rests: tuple[str, ...] = ()

    @property
    def class_name(self) -> str:
        """Name of the class; traces and charts show the optimizer under it."""
        return self.path.rpartition(".")[2]

    @property
    def is_layerwise(self) -> bool:
        """Whether a trust ratio scales each tensor's rate; a replay can compute it again."""
        return self.describe({}).scaling.kind == "trust-ratio"

    def load(self) -> type[Optimizer]:
        """The class.

        Raises:
            UserError: the installed torch doesn't have it.
        """
        path, _, name = self.path.rpartition(".")
        module = import_module(path)
        found: type[Optimizer] | None = getattr(module, name, None)
        if found is None:  # torch.optim.Muon is there from 2.9 on, and any other class in every version
            raise UserError(
                f"torch {version('torch')} has no {self.path} (allowed: torch 2.9 or later): install a later torch, or "
                "choose another --opt"
            )
        return found

    def describe(self, settings: Settings) -> GroupDescription:
        """The description of a group with these settings; a setting that isn't given has the value `train` gives it."""
        # Only its own: other optimizers have settings of the same name, such as TVLARS' and RMSprop's alpha.
        chosen = {f.name: f.default for f in fields(OptimizerConfig) if f.name in self.settings}
        found = self.rule({**dict(self.defaults), **chosen, **dict(self.fixed), **settings})
        return found or GroupDescription.unknown(self.class_name, self.path.rpartition(".")[0])


def _lars(settings: Settings) -> GroupDescription:
    """`tvlars_probe.LARS`, whose class states the formula."""
    # Of heavy_ball's settings LARS has momentum alone: the others are for SGD.
    momentum = heavy_ball({"momentum": settings["momentum"]})
    # Without momentum ‖Δw‖ is lr·q·‖d‖. The trace has ‖d‖ only where it is the divisor.
    without = "direction" if settings["denominator"] == "decayed" else "weights"
    return GroupDescription(
        optimizer="LARS",
        momentum=momentum,
        decay=decay(settings, "coupled", spares_vectors=bool(settings["weight_decay_filter"])),
        scaling=Scaling(
            kind="trust-ratio",
            eta=number(settings["eta"]),
            divisor=settings["denominator"],
            clip="rate" if settings["trust_clip"] else "none",
            spares_vectors=bool(settings["lars_adaptation_filter"]),
            spares_undecayed=settings["exclusion"] == "undecayed",
        ),
        norms="last_step",
        update_norm="buffer" if momentum.beta else without,  # type: ignore[arg-type]
    )


def _tvlars(settings: Settings) -> GroupDescription:
    """`tvlars_probe.TVLARS`: LARS with φ and with both norms clamped."""
    lars = _lars(settings)
    phi = Phi(**{name: number(settings[name]) for name in _PHI})
    return replace(
        lars,
        optimizer="TVLARS",
        scaling=replace(lars.scaling, weight_cap=NORM_CAP, divisor_cap=NORM_CAP, phi=phi),
    )


def _lamb(settings: Settings) -> GroupDescription:
    """`tvlars_probe.LAMB`, whose class states the formula; no bias is corrected."""
    beta1, beta2 = settings["betas"]
    decayed = number(settings["weight_decay"] or 0.0)
    scaling = Scaling(
        kind="none" if settings["adam"] else "trust-ratio",
        direction="preconditioned",
        weight_cap=NORM_CAP,
        clip="one" if settings["trust_clip"] else "none",
        spares_vectors=bool(settings["lars_adaptation_filter"]),
    )
    return GroupDescription(
        optimizer="LAMB",
        momentum=Momentum(form="moving-average", beta=number(beta1), over="gradient"),
        decay=Decay(form="direction", value=decayed, spares_vectors=bool(settings["weight_decay_filter"]))
        if decayed
        else Decay(),
        preconditioner=Preconditioner(
            kind="adam", beta=number_or_none(beta2), eps=number(settings["eps"]), second_moment="exp_avg_sq"
        ),
        scaling=scaling,
        norms="last_step",
        update_norm="direction",
    )


def _nlamb(settings: Settings) -> GroupDescription:
    lamb = _lamb(settings)
    return replace(lamb, optimizer="NLAMB", momentum=replace(lamb.momentum, lookahead=True))


_LARS = ("weight_decay", "momentum", "eta", "denominator", "exclusion", "trust_clip", "excluded_lr")
_PHI = ("lmbda", "alpha", "delay", "gamma_min")
_FILTERS = (("weight_decay_filter", True), ("lars_adaptation_filter", True))
_LAMB_DEFAULTS = (
    ("betas", (0.9, 0.999)), ("eps", 1e-6), ("weight_decay_filter", False), ("lars_adaptation_filter", False),
)  # fmt: skip
_ADAM_DEFAULTS = (("betas", (0.9, 0.999)), ("eps", 1e-8))
_HOME = "tvlars_probe.optimizers"


def _torchs(
    module: str, name: str, default_lr: float, settings: tuple[str, ...], colour: str, *defaults: tuple[str, Any]
) -> OptimizerEntry:
    path = f"torch.optim.{module}.{name}"
    return OptimizerEntry(
        path=path, rule=TORCH[path], default_lr=default_lr, settings=settings, colour=colour, defaults=defaults
    )


OPTIMIZERS: dict[str, OptimizerEntry] = {
    # The official runs switch both filters on for LARS and TVLARS; the classes themselves have them off.
    "lars": OptimizerEntry(
        path=f"{_HOME}.lars.LARS", rule=_lars, default_lr=5.0, settings=_LARS, colour="#0072B2", fixed=_FILTERS
    ),
    "tvlars": OptimizerEntry(
        path=f"{_HOME}.tvlars.TVLARS", rule=_tvlars, default_lr=5.0, settings=(*_LARS, *_PHI), colour="#009E73",
        fixed=_FILTERS,
    ),
    "lamb": OptimizerEntry(
        path=f"{_HOME}.lamb.LAMB", rule=_lamb, default_lr=0.01, settings=("weight_decay", "adam", "trust_clip"),
        colour="#D55E00", defaults=_LAMB_DEFAULTS,
    ),
    "nlamb": OptimizerEntry(
        path=f"{_HOME}.nlamb.NLAMB", rule=_nlamb, default_lr=0.01, settings=("weight_decay", "adam", "trust_clip"),
        colour="#882255", defaults=_LAMB_DEFAULTS,
    ),
    "sgd": _torchs("sgd", "SGD", 0.1, ("weight_decay", "momentum", "nesterov"), "#CC79A7"),
    "adam": _torchs("adam", "Adam", 0.001, ("weight_decay",), "#E69F00", *_ADAM_DEFAULTS),
    "adamw": _torchs("adamw", "AdamW", 0.001, ("weight_decay",), "#56B4E9", *_ADAM_DEFAULTS),
    "adagrad": _torchs("adagrad", "Adagrad", 0.01, ("weight_decay",), "#999933", ("eps", 1e-10)),
    # Jordan's rate for matrices. torch's own default, 0.001, is meant for another scale of the update.
    "muon": OptimizerEntry(
        path="torch.optim.Muon", rule=TORCH["torch.optim.Muon"], default_lr=0.02, settings=("weight_decay",),
        colour="#44AA99", defaults=(("momentum", 0.95), ("nesterov", True), ("eps", 1e-7)), rests=("adamw", "sgd"),
    ),
    "rmsprop": _torchs("rmsprop", "RMSprop", 0.001, ("weight_decay",), "#AA4499", ("eps", 1e-8), ("alpha", 0.99)),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer and its settings as a user chooses them; settings that the optimizer doesn't take are ignored.

    Attributes:
        name: one of `OPTIMIZERS`.
        lr: learning rate; None for the optimizer's own default.
        weight_decay: decoupled for adamw and muon, added to the direction for lamb and nlamb, coupled for the others;
            lars and tvlars leave biases and normalisation layers out. Of muon and of its rest alike, each in its way.
        momentum: of lars, tvlars and sgd, also where sgd is muon's rest.
        nesterov: Nesterov's momentum for sgd, also there.
        eta: trust coefficient of lars and tvlars.
        lmbda: TVLARS' λ, per update.
        alpha: TVLARS' α.
        delay: TVLARS' d_e, in updates.
        gamma_min: TVLARS' γ_min.
        denominator: of lars and tvlars; see `tvlars_probe.LARS`.
        exclusion: of lars and tvlars; see `tvlars_probe.LARS`.
        trust_clip: clips the trust ratio: q ← min(q/lr, 1) for lars and tvlars, q ← min(q, 1) for lamb and nlamb.
        adam: switches the trust ratio of lamb and nlamb off.
        excluded_lr: learning rate of the tensors of at most one dimension, which lars and tvlars don't adapt; None for
            ``lr``. A schedule scales both.
        muon_rest: the optimizer of what muon doesn't take (`tvlars_probe.optimizers.hidden_matrices`), one of the
            entry's `OptimizerEntry.rests`; None for the first of them.
        muon_rest_lr: that optimizer's learning rate; None for its own default. A schedule scales both.
    """

    name: str = "lars"
    lr: float | None = None
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = False
    eta: float = 0.001
    lmbda: float = 0.001
    alpha: float = 0.1
    delay: float = 0.0
    gamma_min: float = 0.0
    denominator: str = "decayed"
    exclusion: str = "ndim"
    trust_clip: bool = False
    adam: bool = False
    excluded_lr: float | None = None
    muon_rest: str | None = None
    muon_rest_lr: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise unknown("optimizer", self.name, OPTIMIZERS)
        for name in ("lr", "weight_decay", "eta", "lmbda", "gamma_min", "excluded_lr", "muon_rest_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} {value:g} is outside its range (allowed: 0 or more)")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum {self.momentum:g} is outside its range (allowed: 0 <= momentum < 1)")
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"--alpha {self.alpha:g} is outside its range (allowed: above 0)")
        if not abs(self.delay) < float("inf"):
            raise UserError(f"--delay {self.delay:g} is outside its range (allowed: a number of updates)")
        if self.nesterov and "nesterov" in OPTIMIZERS[self.name].settings and self.momentum == 0:
            raise UserError("--nesterov needs a --momentum above 0")
        if self.muon_rest is not None and self.muon_rest not in OPTIMIZERS["muon"].rests:
            raise unknown("--muon-rest", self.muon_rest, OPTIMIZERS["muon"].rests)
        self.rest  # noqa: B018 (refuses settings that the rest can't have)

    @property
    def peak(self) -> float:
        """The learning rate before any schedule."""
        return OPTIMIZERS[self.name].default_lr if self.lr is None else self.lr

    @property
    def rest(self) -> OptimizerConfig | None:
        """The optimizer of the parameters that the named one doesn't take; None where it takes all."""
        rests = OPTIMIZERS[self.name].rests
        return replace(self, name=self.muon_rest or rests[0], lr=self.muon_rest_lr) if rests else None

    @property
    def has_rates(self) -> bool:
        """Whether what multiplied each gradient can be told; see `GroupDescription.has_rates`."""
        return OPTIMIZERS[self.name].describe({}).has_rates

    def settings(self) -> dict[str, Any]:
        """The learning rate and the settings that this optimizer takes: all that changes its numbers."""
        entry = OPTIMIZERS[self.name]
        taken = {name: getattr(self, name) for name in entry.settings}
        if taken.get("excluded_lr", 0) is None:
            del taken["excluded_lr"]  # configurations from before this setting keep their hash
        rest = {} if self.rest is None else {"rest": {"name": self.rest.name, **self.rest.settings()}}
        return {"lr": self.peak, **taken, **dict(entry.fixed), **rest}

    def build(self, params: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters.

        With ``excluded_lr`` it has two groups, the second for tensors of at most one dimension. Empty groups are left
        out. Where the named optimizer doesn't take all of them, it is a `CombinedOptimizer` of two, whose first group
        is the named one's.

        Raises:
            UserError: the installed torch doesn't have the optimizer, or none of the parameters is one that it takes.
        """
        settings = self.settings()
        excluded_lr = settings.pop("excluded_lr", None)
        build = OPTIMIZERS[self.name].load()
        if self.rest is not None:
            from tvlars_probe.optimizers.combined import CombinedOptimizer

            del settings["rest"]
            taken, left = hidden_matrices(params)
            return CombinedOptimizer([build(taken, **settings), self.rest.build(left)])
        if excluded_lr is None:
            return build(params, **settings)
        everything = list(params)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in everything if p.ndim > 1]},
            {"params": [p for p in everything if p.ndim <= 1], "lr": excluded_lr},
        ]
        return build([group for group in groups if group["params"]], **settings)


LAYERWISE = tuple(name for name, entry in OPTIMIZERS.items() if entry.is_layerwise)
"""Names of the optimizers whose trust ratio a replay can compute again."""
