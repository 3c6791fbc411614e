"""The settings of Barlow Twins and of its linear evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvlars_probe.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig:
    """Barlow Twins as chosen by a user; the optimizer and schedule of the run are those of the pretraining.

    Attributes:
        epochs: epochs of the pretraining.
        lmbda: weight λ of the redundancy term.
        projector: widths of the projector's layers, joined by "-".
        lr_classifier: peak learning rate of the linear probe, falling as a cosine over its epochs.
        lr_backbone: peak learning rate of the backbone in the same phase; 0 freezes it.
        probe_batch_size: samples of one update of the linear probe, over all ranks.

    Raises:
        UserError: a setting is outside its range.
    """

    epochs: int = 1000
    lmbda: float = 0.005
    projector: str = "4096-4096-4096"
    lr_classifier: float = 0.3
    lr_backbone: float = 0.0
    probe_batch_size: int = 256

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"--cl-epochs {self.epochs} is too few (allowed: 1 or more)")
        if self.probe_batch_size < 1:
            raise UserError(f"--probe-batch-size {self.probe_batch_size} is too few (allowed: 1 or more)")
        for option, value in (
            ("btlmbda", self.lmbda),
            ("lr-classifier", self.lr_classifier),
            ("lr-backbone", self.lr_backbone),
        ):
            if not 0 <= value < math.inf:
                raise UserError(f"--{option} {value:g} is outside its range (allowed: 0 or more)")
        self.widths  # noqa: B018 (refuses a projector that is none)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the projector's layers, as numbers."""
        words = self.projector.split("-")
        if not all(word.isdecimal() and int(word) > 0 for word in words):
            raise UserError(f"--projector {self.projector!r}: give the widths of its layers, such as 4096-4096-4096")
        return tuple(int(word) for word in words)
