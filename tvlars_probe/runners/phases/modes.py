"""The modes of ``train`` by name, and the phases of each.

Needs no torch: the classes stand here as names, which `tvlars_probe.runners.phases.phase` loads.
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
        phases: the full name of each phase's class, by the phase's name in the trace, in order.
        epochs: path, with dots, of the field of `TrainConfig` that holds the epochs of the first phase. The run's
            optimizer and schedule are for that phase.
        epochs_option: the option that sets these epochs.
        joins_samples: whether the first phase's loss joins all samples of a batch. If so, the ranks compute in step,
            and a batch can't be cut into micro-batches.
        settings: name of the part of `TrainConfig` that only this mode reads.
        prefix: beginning of a run directory's default name.
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
"""The full name of each phase's class, by the phase's name, over all modes."""
