"""What is recorded of a run, and when it is checkpointed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvlars_probe.errors import UserError, unknown
from tvlars_probe.findings.ids import known_rules

DETAILS = ("full", "norms", "none")
ON_PROBE_ERROR = ("warn", "raise")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is recorded of a run, and when it is checkpointed. None of it changes the run's numbers.

    Attributes:
        detail: "full", "norms" (without update_norm) or "none" (steps and epochs only).
        every: steps between recordings of the layers; 1 records them in every step.
        spectral_every: steps between measurements of spectral norms, a multiple of ``every``; None for none.
        noise: whether the gradient's noise is estimated in recorded steps, from micro-batches and ranks.
        checkpoint_every: epochs between checkpoints; 0 writes only the last one.
        checkpoint_steps: updates between further checkpoints, also within epochs.
        checkpoint_minutes: minutes between further checkpoints.
        keep_checkpoints: how many of the latest are kept, beside the best one and the one at the end of the phase
            before; 0 keeps all.
        on_probe_error: "warn" goes on without the probes when one raises, "raise" ends the run.
        train_eval_samples: training samples evaluated at each epoch's end; 0 leaves this evaluation out.
        findings: ids of the rules that look for what is wrong, or "default", "all" or "none".
        stop_on: ids of rules whose findings end the run.
        export: names of the trackers that are sent the run while it trains.
        export_layers: patterns of the tensors of which they get all figures.
    """

    detail: str = "full"
    every: int = 1
    spectral_every: int | None = None
    noise: bool = False
    checkpoint_every: int = 1
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 1
    on_probe_error: str = "warn"
    train_eval_samples: int = 10_000
    findings: tuple[str, ...] = ("default",)
    stop_on: tuple[str, ...] = ()
    export: tuple[str, ...] = ()
    export_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.detail not in DETAILS:
            raise unknown("--record", self.detail, DETAILS)
        if self.every < 1:
            raise UserError(f"--record-every {self.every} is too few (allowed: 1 or more)")
        if self.spectral_every is not None:
            if self.spectral_every < 1 or self.spectral_every % self.every:
                raise UserError(
                    f"--spectral-every {self.spectral_every} isn't possible (allowed: 1 or more, a multiple of "
                    f"--record-every {self.every})"
                )
            if self.detail == "none":
                raise UserError("--spectral-every needs the layers, which --record none leaves out")
        if self.noise and self.detail == "none":
            raise UserError("--noise needs the norms of the gradients, which --record none leaves out")
        for name in ("checkpoint_every", "train_eval_samples", "keep_checkpoints"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too few (allowed: 0 or more)")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise UserError(f"--checkpoint-steps {self.checkpoint_steps} is too few (allowed: 1 or more)")
        if self.checkpoint_minutes is not None and not 0 < self.checkpoint_minutes < math.inf:
            raise UserError(f"--checkpoint-minutes {self.checkpoint_minutes:g} is no time (allowed: above 0, finite)")
        if self.export_layers and not self.export:
            raise UserError("--export-layers says what trackers get: name them by --export")
        if self.on_probe_error not in ON_PROBE_ERROR:
            raise unknown("--on-probe-error", self.on_probe_error, ON_PROBE_ERROR)
        for name in ("findings", "stop_on"):
            known_rules(getattr(self, name), f"--{name.replace('_', '-')}")
