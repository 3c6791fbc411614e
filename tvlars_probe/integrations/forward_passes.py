"""What a model's own forward passes tell of a step: the loss that it returns, its samples and its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tvlars_probe.probes.readers.batch_sizes import samples_in
from tvlars_probe.uncompiled import uncompiled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

_IGNORED = -100
"""The label that counts for no loss, in transformers as in torch's cross entropy."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the forward passes of one update told.

    Attributes:
        loss: the loss of the whole update on this rank; None where a pass returned none.
        samples: number of samples; None where unknown.
        tokens: number of tokens that the loss is a mean over, on their device; None where it isn't one over tokens.
        by_tokens: whether the loss is a mean over all tokens of the update, not over micro-batches.
        passes: number of passes.
    """

    loss: Tensor | None
    samples: int | None
    tokens: Tensor | None
    by_tokens: bool
    passes: int


@dataclass(slots=True)
class _Pass:
    loss: Tensor | None
    samples: int | None
    tokens: Tensor | None
    items: Any


class ForwardPasses:
    """Watches the training passes of one model. The outputs stay as they are; nothing waits for the device.

    Args:
        tell_piece: called at each pass with what `Recorder.note_piece` takes, where the size of the piece is known.
    """

    def __init__(self, tell_piece: Callable[..., None]) -> None:
        self._tell_piece = tell_piece
        self._handle: Any = None
        self._passes: list[_Pass] = []

    def attach(self, model: nn.Module) -> None:
        """Watch this model."""
        self._handle = model.register_forward_hook(self._seen, with_kwargs=True)

    def detach(self) -> None:
        """Watch it no more."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self.clear()

    def clear(self) -> None:
        """Forget the passes so far."""
        self._passes.clear()

    @uncompiled
    def _seen(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        # Where the Trainer finds it: by name, or first.
        loss = output.get("loss") if isinstance(output, dict) else output[0] if isinstance(output, tuple) else None
        # A copy: whoever has the loss next may scale it in place.
        loss = loss.detach().clone() if isinstance(loss, Tensor) and loss.numel() == 1 else None
        samples = samples_in([*args, kwargs])
        one = _Pass(loss, samples, _tokens(module, kwargs), kwargs.get("num_items_in_batch"))
        self._passes.append(one)
        size = {"samples": one.samples} if one.tokens is None else {"tokens": one.tokens}
        if one.samples is not None:
            self._tell_piece(**size, weight=_weight(one))

    def taken(self) -> Seen:
        """What the passes since the last call tell; they are forgotten."""
        passes, self._passes = self._passes, []
        losses = [one.loss.reshape(()) for one in passes if one.loss is not None]
        samples = [one.samples for one in passes if one.samples is not None]
        tokens = [one.tokens for one in passes if one.tokens is not None]
        whole = bool(passes) and len(losses) == len(passes)
        by_tokens = whole and all(one.items is not None for one in passes)
        counted = sum(tokens[1:], start=tokens[0]) if tokens and len(tokens) == len(passes) else None
        loss = torch.stack(losses) if whole else None
        if loss is not None and by_tokens and counted is not None:
            # Each pass returned its sum over the tokens divided by the number of all ranks' in the whole update.
            items = torch.as_tensor(passes[0].items, device=loss.device).reshape(-1)[0]
            loss = loss.sum() * items / counted.clamp(min=1)
        elif loss is not None:
            loss = loss.sum() if by_tokens else loss.mean()
        return Seen(loss, sum(samples) if len(samples) == len(passes) else None, counted, by_tokens, len(passes))


def _weight(one: _Pass) -> Tensor | float:
    """What the pass's gradient weighs in that of the whole update."""
    if one.items is None:
        return 1.0  # the Trainer divides each micro-batch's mean loss by their number
    size: Any = one.samples if one.tokens is None else one.tokens
    # The loss is a sum over the pass, divided by the number of items of the whole update.
    weight: Tensor = size / torch.as_tensor(one.items).reshape(-1)[0]
    return weight


def _tokens(module: nn.Module, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The number of tokens that have a label: those over which a language model's loss is a mean.

    A causal model predicts each token from those before it, so that a row's first label counts for nothing.
    """
    if isinstance(kwargs.get("shift_labels"), Tensor):
        shifted: Tensor = kwargs["shift_labels"]
        return shifted.ne(_IGNORED).sum()
    labels = kwargs.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim < 2 or labels.is_floating_point():
        return None
    config = getattr(module, "config", None)
    causal = getattr(module, "loss_type", None) == "ForCausalLM" and not getattr(config, "is_encoder_decoder", False)
    predicted: Tensor = labels[..., 1:] if causal else labels
    return predicted.ne(_IGNORED).sum()
