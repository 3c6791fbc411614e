"""How much is read of each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tvlars_probe.admission.numbers import whole
from tvlars_probe.errors import UserError

Detail = Literal["full", "norms", "none"]
"""How much is read of the layers: all norms, all but ‖Δw‖, or nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingPlan:
    """How much is read of each step.

    Attributes:
        detail: "full", "norms" (without ‖Δw‖) or "none" (no figures of layers).
        every: n, to record the layers in steps 0, n, 2n, ...
        spectral_every: N, to read spectral norms in recorded steps among 0, N, 2N, ...; None to read none.
        noise: whether the gradients of a recorded step's pieces are read.

    Raises:
        UserError: a setting is outside its range, or two settings don't go together.
    """

    detail: Detail = "full"
    every: int = 1
    spectral_every: int | None = None
    noise: bool = False

    def __post_init__(self) -> None:
        if self.detail not in get_args(Detail):
            raise UserError(f"unknown detail {self.detail!r} (known: {', '.join(get_args(Detail))})")
        object.__setattr__(self, "every", whole("every", self.every, "a number of steps", least=1))
        if self.noise not in (True, False):
            raise UserError(f"noise={self.noise!r:.60}: give True or False")
        if self.noise and self.detail == "none":
            raise UserError("noise=True needs the norms of the gradients, which detail='none' leaves out")
        if self.spectral_every is None:
            return
        spectral = whole("spectral_every", self.spectral_every, "a number of steps", least=1, optional=True)
        object.__setattr__(self, "spectral_every", spectral)
        if self.spectral_every % self.every:
            raise UserError(
                f"spectral_every={self.spectral_every}: spectral norms are measured in steps whose layers are "
                f"recorded, which are those of every={self.every}: give a multiple of it"
            )
        if self.detail == "none":
            raise UserError("spectral_every= needs the table layers, which detail='none' leaves out")
