"""How the gradient's noise is measured in training."""

from __future__ import annotations

from dataclasses import dataclass

from tvlars_probe.curvature.results import BN_MODES
from tvlars_probe.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """How the gradient's noise is measured in training, on a fixed sample. None of it changes the run's numbers.

    Attributes:
        every: steps between measurements, "log" (each of the first ten steps, then ten in each decade), or None.
        samples: training samples of the fixed sample; all of them where there are fewer.
        bn_mode: BatchNorm while measuring: "frozen-batch", "eval", or "train", which needs ``piece``; see
            `tvlars_probe.curvature.batch_norm`.
        piece: samples of a piece; None compares single samples.
    """

    every: str | None = None
    samples: int = 512
    bn_mode: str = "frozen-batch"
    piece: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every != "log" and not (self.every.isdecimal() and int(self.every) > 0):
            raise UserError(f"--noise-every {self.every}: give a number of steps, 1 or more, or 'log'")
        if self.bn_mode not in BN_MODES:
            raise unknown("--noise-bn", self.bn_mode, BN_MODES)
        if self.piece is not None and self.piece < 1:
            raise UserError(f"--noise-piece {self.piece} is too few (allowed: 1 or more)")
        if self.samples < 2 * (self.piece or 1):
            raise UserError(
                f"--noise-samples {self.samples} is too few (allowed: {2 * (self.piece or 1)} or more, as noise shows "
                "between two pieces)"
            )
