"""What a run does, by name: the modes of ``train``, and the phases of each.

Needs no torch: `tvlars_probe.runners.phases.phase` loads the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A kind of run.

    Attributes:
        phases: the phases in order: their names in the trace, and the full names of their classes.
        epochs: where a configuration keeps the epochs of the first phase, whose optimizer and schedule are the run's;
            names joined by dots.
        epochs_option: the option that sets them.
        joins_samples: whether the loss joins all samples of a batch: the ranks compute in step, and a batch can't be
            cut into pieces.
        settings: the part of a configuration that no other mode reads.
        prefix: what the default name of a run directory begins with.
    """

    phases: Mapping[str, str]
    epochs: str = "epochs"
    epochs_option: str = "--epochs"
    joins_samples: bool = False
    settings: str | None = None
    prefix: str = ""


MODES: dict[str, Mode] = {
    "clf": Mode(phases={"train": "tvlars_probe.runners.phases.classification.Classification"}),
    "bt": Mode(
        phases={
            "pretrain": "tvlars_probe.runners.phases.barlow_twins.Pretraining",
            "linear": "tvlars_probe.runners.phases.linear_evaluation.LinearEvaluation",
        },
        epochs="barlow.epochs",
        epochs_option="--cl-epochs",
        joins_samples=True,
        settings="barlow",
        prefix="bt-",
    ),
}

PHASES: dict[str, str] = {name: path for mode in MODES.values() for name, path in mode.phases.items()}
"""Every phase: its name, and the full name of its class."""
