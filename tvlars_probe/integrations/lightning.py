"""`LightningProbe`: a recorder as a callback of Lightning's Trainer.

::

    trainer = lightning.Trainer(callbacks=[tvlars_probe.integrations.LightningProbe("runs/mine")])

Lightning Fabric leaves the loop to its owner: call `tvlars_probe.record` there.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from tvlars_probe.integrations.attachment import Attachment, epoch_figures, samples_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from tvlars_probe.probes.recorder import Recorder

_PARTS = {"train": "train", "val": "val", "test": "test"}


class LightningProbe(Callback):
    """Records what a `lightning.Trainer` trains, with one row of ``steps`` per update.

    A row is what the optimizers update from one batch on which any of them steps to the next. Its loss is the mean of
    the losses that ``training_step`` returned in those batches, micro-batches alike; null where it returned none.
    Metrics logged as ``train_``, ``val_`` or ``test_`` with ``loss``, ``acc`` or ``accuracy`` (a share of 1) go into
    the table ``epochs``, if they were made in that epoch and of all of it (``on_epoch=True``). Where the Trainer clips
    gradients, their norm is read before, too. With a checkpoint of the Trainer's (``fit(ckpt_path=...)``) the recording
    goes on where the checkpoint was made.

    Args:
        path: the run directory.
        settings: further arguments of `tvlars_probe.record`: detail, every, probes, exists, ...

    Raises:
        UserError: at the start of the training, where `tvlars_probe.record` refuses.
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        self._attachment = Attachment(path, settings)
        self._resume: dict[str, Any] | None = None
        self._home: str | None = None
        self._ended: dict[str, Any] = {}
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
        steps = trainer.estimated_stepping_batches
        recorder = self._attachment.begin(
            pl_module,
            trainer.optimizers,
            home=self._home,
            total_steps=int(steps) if math.isfinite(steps) else None,
            resume=self._resume,
        )
        if trainer.accumulate_grad_batches > 1:
            recorder.manifest.loss_mean = "micro-batches"
        self._resume, self._home, self._steps = None, None, trainer.global_step
        self._losses, self._samples, self._descended, self._ended = [], [], [], {}
        self._metrics = {**trainer.callback_metrics}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if pl_module.automatic_optimization:
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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The Trainer keeps a metric until another one takes its place: of training steps the last one's, of validations
        # that of an earlier epoch.
        of_epoch = _made_of_epoch(trainer)
        old, self._metrics = self._metrics, {**trainer.callback_metrics}
        fresh = {
            name: value
            for name, value in self._metrics.items()
            if (name in of_epoch if name.startswith("train_") else value is not old.get(name))
        }
        if self.recorder is not None and (figures := epoch_figures(fresh, _PARTS)):
            self.recorder.log_epoch(epoch=trainer.current_epoch, **figures)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attachment.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attachment.go_on()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Callbacks that are told later may save a checkpoint. Where others are gone, nobody knows what they had.
        if self.recorder is not None and trainer.world_size == 1:
            with contextlib.suppress(Exception):
                self._ended = self._state(self.recorder)
        self._attachment.end(exception)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.recorder is not None:
            self._ended = self._state(self.recorder)
        self._attachment.end()

    def _state(self, recorder: Recorder) -> dict[str, Any]:
        return {**recorder.state_dict(), "home": os.fspath(recorder.path)}

    def state_dict(self) -> dict[str, Any]:
        # The Trainer calls it on every rank, as the recorder wants it; after a training for a checkpoint of its end.
        return self._ended if self.recorder is None else self._state(self.recorder)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        state = dict(state_dict)
        self._home = state.pop("home", None)
        self._resume = state or None


def _made_of_epoch(trainer: Trainer) -> set[str]:
    """Names of the metrics that the Trainer makes of a whole epoch of training; none where Lightning doesn't tell."""
    logged = getattr(trainer, "_results", None) or {}
    # What an earlier epoch has left behind stays there, reset.
    facts = [getattr(one, "meta", None) for one in logged.values() if not getattr(one, "has_reset", True)]
    return {fact.name for fact in facts if fact is not None and fact.on_epoch}
