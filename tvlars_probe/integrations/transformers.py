"""`TrainerProbe`: a recorder as a callback of transformers' Trainer.

::

    trainer = transformers.Trainer(..., callbacks=[tvlars_probe.integrations.TrainerProbe("runs/mine")])

The Trainer hands a callback neither the step's loss nor its batch. Both are seen in the model's own forward pass.
"""

from __future__ import annotations

import base64
import io
import math
import os
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from tvlars_probe.errors import UserError
from tvlars_probe.integrations.attachment import Attachment, epoch_figures
from tvlars_probe.integrations.forward_passes import ForwardPasses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from tvlars_probe.probes.recorder import Recorder

_PARTS = {"eval": "val"}

_TENSOR = "tensor in base64"

_ELSEWHERE = (
    "TrainerProbe records no loss: {what}. A callback sees only the loss that the model itself returns "
    "(docs/guides/integrations.md)"
)
_DISAGREEMENT = 0.01
"""Relative difference from the Trainer's own mean beyond which the model's loss isn't what was descended."""


@dataclass(slots=True)
class _Losses:
    """The sum of the losses of some steps, on their device: a Trainer may log seldom, or never."""

    total: torch.Tensor | None = None
    steps: int = 0

    def add(self, loss: torch.Tensor) -> None:
        self.total = loss if self.total is None else self.total + loss
        self.steps += 1


class TrainerProbe(TrainerCallback, ExportableState):
    """Records what a `transformers.Trainer` trains, with one row of ``steps`` per update.

    The loss is the one that the model returns. Where the Trainer passes it the number of tokens of the whole update
    (``num_items_in_batch``), it is a mean over these tokens, which the column ``tokens`` counts; elsewhere it is the
    mean of the micro-batches' losses, all alike. Where the loss is made outside of the model (``compute_loss_func``,
    label smoothing, a ``compute_loss`` of one's own), it is null, and a warning says so once.

    ``eval_loss`` and ``eval_accuracy`` (a share of 1) go into the table ``epochs``. The norm before clipping, and the
    factor, are known in the steps that the Trainer logs (``logging_steps``), null between. A training that is resumed
    from a checkpoint goes on in the same trace.

    Args:
        path: the run directory.
        settings: further arguments of `tvlars_probe.record`: detail, every, probes, exists, ...

    Raises:
        UserError: at the start of the training, where `tvlars_probe.record` refuses.
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        self._attachment = Attachment(path, settings)
        self._passes = ForwardPasses(self._tell_piece)
        self._saved: dict[str, Any] | None = None
        self._since_log, self._logged_at = _Losses(), -1
        self._trusts_loss = True
        self._batches = 1

    @property
    def recorder(self) -> Recorder | None:
        """The recorder, while the Trainer trains."""
        return self._attachment.recorder

    def close(self) -> None:
        """End the recording after a training that raised, in a process that goes on (a notebook).

        In a script the end of the process does it. A training that comes to its end needs neither.
        """
        self._passes.detach()
        self._attachment.end(KeyboardInterrupt())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer = kwargs.get("model"), kwargs.get("optimizer")
        if model is None or optimizer is None:
            what = "model" if model is None else "optimizer"
            raise UserError(f"the Trainer hands its callbacks no {what} (as under DeepSpeed): it can't be recorded")
        begins_again = self.recorder is not None
        self.close()
        kept = self._resumed(state)
        if args.auto_find_batch_size and begins_again:
            # The Trainer itself begins again with smaller batches: what was recorded of larger ones stands where it is.
            self._attachment.settings["exists"] = "new"
        self._attachment.begin(model, optimizer, kept, total_steps=state.max_steps)
        self._saved, self._trusts_loss, self._batches = None, True, 1
        self._since_log, self._logged_at = _Losses(), -1
        self._passes.attach(model)

    def _tell_piece(self, **piece: Any) -> None:
        if self.recorder is not None:
            self.recorder.note_piece(**piece)

    def _resumed(self, state: TrainerState) -> dict[str, Any] | None:
        """What was kept in the Trainer's checkpoint from which it goes on; None at a fresh start."""
        # The Trainer declares a list of callbacks and holds their states by name.
        by_name: Any = state.stateful_callbacks
        stored = by_name.get(type(self).__name__)
        here = os.fspath(self._attachment.path)
        for one in stored if isinstance(stored, list) else [stored]:
            if one and one.get("args", {}).get("path") == here and one["attributes"].get("recorded") is not None:
                found: dict[str, Any] = _unpacked(one["attributes"]["recorded"])
                return found
        if state.global_step:
            raise self._attachment.without_recording(state.global_step, "TrainerProbe")
        return None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._attachment.go_on()
        self._passes.clear()
        self._batches = 1

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._batches += 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.recorder is None:
            return
        seen = self._passes.taken()
        if seen.passes > self._batches * max(args.n_gpu, 1):  # DataParallel calls a replica on each GPU
            # The loss is made of several passes, in a way that isn't seen; and samples would count more than once.
            seen = replace(seen, loss=None, samples=None, tokens=None)
            if self._trusts_loss:
                self._distrust(f"the model was called {seen.passes} times for {self._batches} batch(es)")
        elif seen.loss is None and self._trusts_loss:
            self._distrust(
                "the model returned none, so that the Trainer makes it (compute_loss_func, label smoothing)"
                if seen.passes
                else "no forward pass of the model was seen"
            )
        if args.gradient_accumulation_steps > 1 and not seen.by_tokens:
            self.recorder.manifest.loss_mean = "micro-batches"
        if seen.loss is not None and self._trusts_loss:
            self._since_log.add(seen.loss)
        self.recorder.log(
            loss=seen.loss if self._trusts_loss else None,
            samples=seen.samples,
            tokens=seen.tokens,
            epoch=_epoch(state),
        )
        if self.recorder.stop_agreed:
            control.should_training_stop = True  # on all ranks in the same step
        if not control.should_log:  # what is logged belongs to this row, which the state would end
            self._keep(control.should_save)
        if control.should_save or control.should_evaluate:
            self._attachment.pause()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not control.should_log or self._logged_at == state.global_step:
            self._keep(control.should_save)
        if control.should_save or control.should_evaluate:
            self._attachment.pause()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: Mapping[str, Any] = kwargs.get("logs") or {}
        if self.recorder is None or "learning_rate" not in logs:
            return  # an evaluation's metrics, or those of the whole training
        if "grad_norm" in logs and args.max_grad_norm > 0:
            self.recorder.note_norm_before_clipping(float(logs["grad_norm"]), max_norm=args.max_grad_norm)
        told, self._since_log, self._logged_at = self._since_log, _Losses(), state.global_step
        if told.total is not None and self._trusts_loss and "loss" in logs:
            self._compare(float(told.total) / told.steps, float(logs["loss"]))
        self._keep(control.should_save)

    def _compare(self, ours: float, trainers: float) -> None:
        """Distrust the model's loss where its mean isn't the Trainer's, which is that of the steps since the last log.

        Over several ranks the Trainer logs the ranks' mean: then they differ rightly, and nothing is compared.
        """
        alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
        differs = abs(ours - trainers) > _DISAGREEMENT * max(abs(ours), abs(trainers))
        if alone and differs:
            self._distrust(f"the model returned {ours:.6g} and the Trainer descended {trainers:.6g}, on average")

    def _distrust(self, what: str) -> None:
        self._trusts_loss = False
        text = _ELSEWHERE.format(what=what)
        if self.recorder is not None:
            self.recorder.manifest.notes.append(text)
        warnings.warn(text, stacklevel=2)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.recorder is None:
            return
        if figures := epoch_figures(kwargs.get("metrics") or {}, _PARTS):
            self.recorder.log_epoch(epoch=_epoch(state), **figures)
        # Only now the Trainer decides whether this is the best model so far, which is then saved.
        self._keep(control.should_save or args.save_strategy == "best")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._passes.detach()
        self._attachment.end()

    def _keep(self, is_to_be_saved: bool) -> None:
        """Take the recorder's state for a checkpoint: on all ranks, of which one alone is asked for `state`."""
        if is_to_be_saved and self.recorder is not None:
            kept = self._attachment.keep()
            self._saved = None if kept is None else _packed(kept)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into its checkpoint."""
        # The Trainer rebuilds the callback from "args" if it is told to restore callbacks; they must fit into JSON.
        plain = {k: v for k, v in self._attachment.settings.items() if isinstance(v, str | int | float | bool | None)}
        return {
            "args": {"path": os.fspath(self._attachment.path), **plain},
            "attributes": {"recorded": self._saved},
        }


def _packed(state: Any) -> Any:
    """A state with texts in place of tensors, which probes may have: the Trainer's checkpoint keeps it as JSON."""
    if isinstance(state, torch.Tensor):
        torch.save(state.detach().cpu().clone(), written := io.BytesIO())
        return {_TENSOR: base64.b64encode(written.getvalue()).decode()}
    if isinstance(state, dict):
        return {name: _packed(value) for name, value in state.items()}
    return [_packed(value) for value in state] if isinstance(state, list | tuple) else state


def _unpacked(state: Any) -> Any:
    """The state that `_packed` was given."""
    if isinstance(state, dict) and state.keys() == {_TENSOR}:
        return torch.load(io.BytesIO(base64.b64decode(state[_TENSOR])), weights_only=True)
    if isinstance(state, dict):
        return {name: _unpacked(value) for name, value in state.items()}
    return [_unpacked(value) for value in state] if isinstance(state, list) else state


def _epoch(state: TrainerState) -> int:
    """The index of the epoch that the last step belongs to: the Trainer counts in parts of epochs that are done."""
    return max(0, math.ceil(state.epoch or 0) - 1)
