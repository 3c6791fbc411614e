"""Optimizers by name, with the settings that each takes. A new one is one entry in `OPTIMIZERS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Entry:
    """A known optimizer.

    Attributes:
        default_lr: learning rate where the user gives none.
        settings: fields of `OptimizerConfig` that it takes, besides lr.
        build: makes it from parameters and keyword arguments.
        fixed: keyword arguments that are always given.
    """

    default_lr: float
    settings: tuple[str, ...]
    build: Callable[[], type[Optimizer]]
    fixed: tuple[tuple[str, Any], ...] = ()


def _ours(name: str) -> Callable[[], type[Optimizer]]:
    def load() -> type[Optimizer]:
        import tvlars_probe

        return getattr(tvlars_probe, name)  # type: ignore[no-any-return]

    return load


def _torchs(name: str) -> Callable[[], type[Optimizer]]:
    def load() -> type[Optimizer]:
        from torch import optim

        return getattr(optim, name)  # type: ignore[no-any-return]

    return load


_LARS = ("weight_decay", "momentum", "eta", "denominator", "exclusion", "trust_clip", "excluded_lr")
_PHI = ("lmbda", "alpha", "delay", "gamma_min")
_FILTERS = (("weight_decay_filter", True), ("lars_adaptation_filter", True))

OPTIMIZERS: dict[str, Entry] = {
    "lars": Entry(5.0, _LARS, _ours("LARS"), _FILTERS),
    "tvlars": Entry(5.0, (*_LARS, *_PHI), _ours("TVLARS"), _FILTERS),
    "lamb": Entry(0.01, ("weight_decay", "adam", "trust_clip"), _ours("LAMB")),
    "sgd": Entry(0.1, ("weight_decay", "momentum", "nesterov"), _torchs("SGD")),
    "adam": Entry(0.001, ("weight_decay",), _torchs("Adam")),
    "adamw": Entry(0.001, ("weight_decay",), _torchs("AdamW")),
    "adagrad": Entry(0.01, ("weight_decay",), _torchs("Adagrad")),
    "rmsprop": Entry(0.001, ("weight_decay",), _torchs("RMSprop")),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer as chosen by a user; settings that it doesn't take are ignored.

    Attributes:
        name: one of `OPTIMIZERS`.
        lr: learning rate; by default the optimizer's own.
        weight_decay: coupled for all but adamw; lars and tvlars leave biases and normalisation layers out.
        momentum: of lars, tvlars and sgd.
        nesterov: of sgd.
        eta: trust coefficient of lars and tvlars.
        lmbda: TVLARS' λ, per update.
        alpha: TVLARS' α.
        delay: TVLARS' d_e, in updates.
        gamma_min: TVLARS' γ_min.
        denominator: of lars and tvlars; see `tvlars_probe.LARS`.
        exclusion: of lars and tvlars; see `tvlars_probe.LARS`.
        trust_clip: of lars, tvlars (q ← min(q/lr, 1)) and lamb (q ← min(q, 1)).
        adam: lamb without its trust ratio.
        excluded_lr: learning rate of what lars and tvlars don't adapt for having one dimension; by default ``lr``. A
            schedule scales both.
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

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise unknown("optimizer", self.name, OPTIMIZERS)
        for name in ("lr", "weight_decay", "eta", "lmbda", "gamma_min", "excluded_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} {value:g} is outside its range (allowed: 0 or more)")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum {self.momentum:g} is outside its range (allowed: 0 <= momentum < 1)")
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"--alpha {self.alpha:g} is outside its range (allowed: above 0)")
        if not abs(self.delay) < float("inf"):
            raise UserError(f"--delay {self.delay:g} is outside its range (allowed: a number of updates)")
        if self.nesterov and self.name == "sgd" and self.momentum == 0:
            raise UserError("--nesterov needs a --momentum above 0")

    @property
    def peak(self) -> float:
        """The learning rate before any schedule."""
        return OPTIMIZERS[self.name].default_lr if self.lr is None else self.lr

    def settings(self) -> dict[str, Any]:
        """What this optimizer really takes of the settings: all that changes its numbers."""
        entry = OPTIMIZERS[self.name]
        taken = {name: getattr(self, name) for name in entry.settings}
        if taken.get("excluded_lr", 0) is None:
            del taken["excluded_lr"]  # a configuration without it keeps its hash
        return {"lr": self.peak, **taken, **dict(entry.fixed)}

    def build(self, params: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters; with ``excluded_lr`` in two groups, those of one dimension last."""
        settings = self.settings()
        excluded_lr = settings.pop("excluded_lr", None)
        build = OPTIMIZERS[self.name].build()
        if excluded_lr is None:
            return build(params, **settings)
        everything = list(params)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in everything if p.ndim > 1]},
            {"params": [p for p in everything if p.ndim <= 1], "lr": excluded_lr},
        ]
        return build([group for group in groups if group["params"]], **settings)
