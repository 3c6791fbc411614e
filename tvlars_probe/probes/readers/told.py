"""Turns what a loop tells of a step into the numbers that a row takes, and refuses anything else."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.rules import number
from tvlars_probe.probes.readers.pieces import Told
from tvlars_probe.shards import whole_of


def mean_loss(loss: Any) -> Tensor | float | None:
    """The mean loss that a loop told: a tensor of one element stays on its device, anything else becomes a float.

    Of a DTensor, which a loss is under tensor parallelism, every rank calls this.

    Raises:
        UserError: it isn't one real number.
    """
    if isinstance(loss, Tensor) and (loss.numel() != 1 or loss.is_complex()):
        what = f"{'complex ' if loss.is_complex() else ''}tensor of {tuple(loss.shape)}"
        raise UserError(f"rec.log(loss=...) takes the mean loss, one number; got a {what}")
    # Detached, so that the rows don't keep the step's graph in memory.
    if isinstance(loss, Tensor):
        return whole_of(loss.detach())
    return None if loss is None else scalar("loss", loss)


def step_figures(*, samples: Any, tokens: Any, epoch: Any, clip_scale: Any) -> dict[str, Any]:
    """What was told of a step besides its loss, by column of the table ``steps``.

    Raises:
        UserError: a figure is no number, or a count is no whole number from 0 on.
    """
    # A number of tokens on an accelerator is read at the flush: here the host would wait for it.
    waiting = _waiting(tokens)
    told = {
        "samples": count("samples", samples),
        "tokens": count("tokens", tokens) if waiting is None else waiting,
        "epoch": count("epoch", epoch),
    }
    figures = {name: value for name, value in told.items() if value is not None}
    return figures if clip_scale is None else {**figures, "clip_scale": scalar("clip_scale", clip_scale)}


def piece_told(*, samples: Any, tokens: Any, weight: Any) -> Told:
    """What was told of a piece of the batch.

    Raises:
        UserError: not one of the two numbers is given, or a value is no number.
    """
    if (samples is None) == (tokens is None):
        raise UserError("rec.note_piece() takes the size of a piece in samples or in tokens: give one of them")
    name, given = ("tokens", tokens) if samples is None else ("samples", samples)
    size: Any = _waiting(given)
    size = count(name, given) if size is None else size
    told: Any = _waiting(weight)
    told = scalar("weight", weight) if told is None and weight is not None else told
    if isinstance(told, float) and not 0 <= told < math.inf:
        raise UserError(f"weight={told:g} is no weight of a piece (allowed: 0 or more, and finite)")
    return Told(size=size, weight=told, of_tokens=samples is None)


def _waiting(value: Any) -> Tensor | None:
    """A tensor on an accelerator, for which the host would wait; None for anything else."""
    is_far = isinstance(value, Tensor) and value.device.type != "cpu"
    return whole_of(value.detach()).clone() if is_far else None


def scalar(name: str, value: Any) -> float:
    """A figure that a loop told, as a float; it may be a tensor or an array of one element.

    Raises:
        UserError: it is no number.
    """
    try:
        return number(whole_of(value.detach()) if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{name}={value!r:.60} is no number: give one number, or a tensor of one element") from None


def count(name: str, value: Any) -> int | None:
    """A count that a loop told, None where it told none.

    Raises:
        UserError: it is no whole number from 0 on.
    """
    if value is None:
        return None
    told = scalar(name, value)
    if not 0 <= told < 1 << 63 or told != int(told):
        raise UserError(f"{name}={told:g} is no count: give a whole number from 0 to 2**63 - 1")
    # Not of ``told``: a float rounds counts above 2⁵³.
    return int(value.item() if hasattr(value, "item") else value)
