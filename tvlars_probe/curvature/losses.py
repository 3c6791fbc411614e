"""The loss of a batch: as a function of model and batch, and in two parts, the model's outputs and their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.curvature.batches import Batch


class TwoParts(Protocol):
    """A loss ℓ(z(w)) of outputs z, whose parts can be differentiated apart, as the Gauss-Newton matrix needs it."""

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """z: a tensor, or tensors in tuples, lists and dicts."""
        ...

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """ℓ(z), which depends on the model through ``outputs`` alone."""
        ...


@dataclass(frozen=True)
class Supervised:
    """``loss_fn(model(inputs), targets)``; its loss is known, as that may be a module."""

    loss_fn: Callable[[Any, Tensor], Tensor]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """The model's outputs of the inputs, which come first in a batch."""
        return model(batch[0])

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of outputs and targets."""
        _, targets = batch
        return self.loss_fn(outputs, targets)


@dataclass(frozen=True)
class Composed:
    """``loss(outputs(model, batch), batch)`` of two functions."""

    outputs: Callable[[nn.Module, Batch], Any]
    loss: Callable[[Any, Batch], Tensor]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss(self.outputs(model, batch), batch)


def two_parts(compute: Any) -> TwoParts:
    """The loss as one in two parts.

    Raises:
        UserError: it doesn't offer them.
    """
    if callable(getattr(compute, "outputs", None)) and callable(getattr(compute, "loss", None)):
        return compute  # type: ignore[no-any-return]
    raise UserError(
        "the operators ggn and adaptive need the loss in two parts, and compute= is one function: give an object that "
        "also has the methods outputs(model, batch) and loss(outputs, batch), or loss_fn in place of compute="
    )


def as_number(loss: Any) -> Tensor:
    """A loss as a 0-dim tensor.

    Raises:
        UserError: it isn't one real number in a tensor.
    """
    if not isinstance(loss, Tensor):
        raise UserError(f"the loss is a {type(loss).__name__}: it must be a tensor, with its graph")
    if loss.numel() != 1:
        shape = tuple(loss.shape)
        raise UserError(f"the loss has the shape {shape}, and must be one number: use reduction='mean'")
    if not loss.is_floating_point():
        raise UserError(f"the loss is of type {loss.dtype}: it must be a real floating-point number")
    return loss if loss.ndim == 0 else loss.reshape(())
