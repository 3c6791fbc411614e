"""`LightningProbe`: a recorder as a callback of Lightning's Trainer.

::

    trainer = lightning.Trainer(callbacks=[tvlars_probe.integrations.LightningProbe("runs/mine")])

Lightning Fabric leaves the loop to its owner: call `tvlars_probe.record` there.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from tvlars_probe.integrations.attachment import Attachment, epoch_figures
from tvlars_probe.probes.readers.batch_sizes import samples_in

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from tvlars_probe.probes.recorder import Recorder

_PARTS = {"train": "train", "val": "val", "test": "test"}


class LightningProbe(Callback):
    """Records what a `lightning.Trainer` trains, with one row of ``steps`` per update.

    A row ends with each batch in which an optimizer steps, and holds all that was updated since the row before. Its
    loss is the mean of those that ``training_step`` returned in these batches, micro-batches alike; null where it
    returned none.
    Metrics logged as ``train_``, ``val_`` or ``test_`` with ``loss``, ``acc`` or ``accuracy`` (a share of 1) go into
    the table ``epochs``, if they were made in that epoch and of all of it (``on_epoch=True``). Where the Trainer clips
    gradients, their norm is read before, too. With a checkpoint of the Trainer's (``fit(ckpt_path=...)``) the recording
    goes on where the checkpoint was made.

    Args:
        path: the run directory.
        settings: further arguments of `tvlars_probe.record`: detail, every, probes, exists, ...

    Raises:
        UserError: at the start of the training, where `tvlars_probe.record` refuses, and where it goes on from a
            checkpoint that holds no recording.
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        self._attachment = Attachment(path, settings)
        self._kept: dict[str, Any] | None = None
        self._ended: _EndedEpoch | None = None
        self._metrics: dict[str, Any] = {}
        self._descended: list[Tensor] = []
        self._losses: list[Tensor | None] = []
        self._samples: list[int | None] = []
        self._steps = 0

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, while the Trainer trains."""
        return self._attachment.recorder

    @property
    def state_key(self) -> str:
        """Under which name a checkpoint keeps the recorder's state: a Trainer may have several probes."""
        return f"{type(self).__qualname__}{{'path': {str(self._attachment.path)!r}}}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps, kept = trainer.estimated_stepping_batches, self._kept if trainer.global_step else None
        if trainer.global_step and kept is None:
            raise self._attachment.without_recording(trainer.global_step, "LightningProbe")
        recorder = self._attachment.begin(
            pl_module, trainer.optimizers, kept, total_steps=int(steps) if math.isfinite(steps) else None
        )
        if trainer.accumulate_grad_batches > 1:
            recorder.manifest.loss_mean = "micro-batches"
        self._kept, self._steps = None, trainer.global_step
        self._losses, self._samples, self._descended = [], [], []
        self._ended, self._metrics = None, {**trainer.callback_metrics}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Of a module that makes its own backward passes nobody knows how many it makes of a batch.
        if self.recorder is not None and pl_module.automatic_optimization and (size := samples_in(batch)) is not None:
            self.recorder.note_piece(samples=size, weight=1.0)  # each mean loss is divided by the number of batches

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.recorder is not None and pl_module.automatic_optimization:
            self._descended.append(loss.detach().clone())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # After this call-back the Trainer clips, and then the optimizer updates.
        if self.recorder is not None and trainer.gradient_clip_val and pl_module.automatic_optimization:
            params = (p for group in optimizer.param_groups for p in group["params"])
            # Clipped by value, each element has a factor of its own.
            self.recorder.read_norm_before_clipping(params, by_value=trainer.gradient_clip_algorithm == "value")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.recorder is None:
            return
        loss = outputs.get("loss") if hasattr(outputs, "get") else outputs if isinstance(outputs, Tensor) else None
        # A step may call its closure again, at other weights: the row has the loss of those before the update. (Of one
        # call it isn't taken, since a gradient scaler may have scaled it. Under such a one there are no others.)
        descended, self._descended = self._descended, []
        loss = descended[0] if len(descended) > 1 else loss
        # The Trainer hands on what it went back from: a micro-batch's share of the mean.
        share = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        self._losses.append(None if loss is None else loss.detach() * share)
        self._samples.append(samples_in(batch))
        if trainer.global_step == self._steps:
            return  # no optimizer has stepped: gradients are accumulated
        losses, samples, self._losses, self._samples = self._losses, self._samples, [], []
        self._steps = trainer.global_step
        told = [one for one in losses if one is not None]
        counts = [one for one in samples if one is not None]
        self.recorder.log(
            loss=torch.stack(told).mean() if len(told) == len(losses) else None,
            samples=sum(counts) if len(counts) == len(samples) else None,
            epoch=trainer.current_epoch,
        )
        if self.recorder.stop_agreed:
            trainer.should_stop = True  # on all ranks in the same step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_epoch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The module is called after this, and may log metrics of the epoch, too.
        self._ended = _EndedEpoch(trainer, trainer.current_epoch, {**trainer.callback_metrics}, _made_of_epoch(trainer))

    def _log_epoch(self) -> None:
        """Log the epoch that has ended, if there is one. The Trainer makes no step between its end and this."""
        ended, self._ended = self._ended, None
        if ended is None or self.recorder is None:
            return
        # The Trainer keeps a metric until another one takes its place: of training steps the last one's, of validations
        # that of an earlier epoch.
        old, self._metrics = self._metrics, {**ended.trainer.callback_metrics}
        fresh = {
            name: value
            for name, value in self._metrics.items()
            if value is not old.get(name)
            and (not name.startswith("train_") or name in ended.whole or value is not ended.metrics.get(name))
        }
        if figures := epoch_figures(fresh, _PARTS):
            self.recorder.log_epoch(epoch=ended.number, **figures)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attachment.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attachment.go_on()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._log_epoch()
        # Callbacks that are told later may save a checkpoint. Where others are gone, nobody knows what they had.
        if trainer.world_size == 1:
            with contextlib.suppress(Exception):
                self._kept = self._attachment.keep()
        self._attachment.end(exception)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_epoch()
        self._kept = self._attachment.keep()  # for a checkpoint that is made from now on
        self._attachment.end()

    def state_dict(self) -> dict[str, Any]:
        # The Trainer calls it on every rank, as the recorder wants it.
        self._log_epoch()
        return self._attachment.keep() or self._kept or {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._kept = dict(state_dict) or None


@dataclass(frozen=True)
class _EndedEpoch:
    """An epoch whose metrics aren't all known yet.

    Attributes:
        trainer: knows them.
        number: of the epoch.
        metrics: those known when the callbacks were told of its end.
        whole: names of those that are made of the whole epoch.
    """

    trainer: Trainer
    number: int
    metrics: dict[str, Any]
    whole: set[str]


def _made_of_epoch(trainer: Trainer) -> set[str]:
    """Names of the metrics that the Trainer makes of a whole epoch of training; none where Lightning doesn't tell."""
    logged = getattr(trainer, "_results", None) or {}
    # What an earlier epoch has left behind stays there, reset.
    facts = [getattr(one, "meta", None) for one in logged.values() if not getattr(one, "has_reset", True)]
    return {fact.name for fact in facts if fact is not None and fact.on_epoch}
