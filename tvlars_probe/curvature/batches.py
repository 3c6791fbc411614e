"""Batches of samples: the forms in which they are given, and parts of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tvlars_probe.errors import UserError

Batch = tuple[Tensor, ...]
"""Tensors whose first dimension counts samples."""

Data = tuple[Tensor, ...] | Iterable[tuple[Tensor, ...]]
"""One batch, or several."""

PARTS = 8
"""Most parts into which `parts` cuts a batch."""


def as_batches(data: Any, *, pairs: bool) -> list[Batch]:
    """The batches of ``data``: one that is a tuple or list of tensors, or any iterable of such.

    Args:
        data: what a caller gave.
        pairs: whether a batch must be two tensors, inputs and targets.

    Raises:
        UserError: a batch is something else.
    """
    wanted = "a pair of tensors (inputs, targets)" if pairs else "a tuple of tensors"
    if isinstance(data, Tensor | Mapping | str) or not hasattr(type(data), "__iter__"):
        raise UserError(f"the data is a {_kind(data)}: give {wanted}, or a list of such batches")
    given = list(data)
    if given and all(isinstance(part, Tensor) for part in given):
        given = [tuple(given)]  # a list of two tensors is what data loaders yield for a pair
    for batch in given:
        is_tensors = isinstance(batch, tuple | list) and len(batch) and all(isinstance(t, Tensor) for t in batch)
        if not is_tensors or (pairs and len(batch) != 2):
            raise UserError(
                f"a batch is a {_kind(batch)}, and must be {wanted}: make such of yours, as in "
                "[(batch['x'], batch['y']) for batch in data]"
            )
        if not all(t.ndim for t in batch):
            raise UserError("a batch has a tensor without dimensions: the first dimension of each must count samples")
    return [tuple(_usable(t) for t in batch) for batch in given]


def _usable(tensor: Tensor) -> Tensor:
    """The tensor without a graph; a copy of one from ``torch.inference_mode``, which autograd refuses."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()


def _kind(thing: Any) -> str:
    """A thing's type, and the types in a tuple or list."""
    inside = ", ".join(type(part).__name__ for part in thing) if isinstance(thing, tuple | list) else ""
    return type(thing).__name__ + (f" ({inside})" if inside else "")


def parts(batch: Batch) -> list[Batch]:
    """Consecutive parts of a batch, at most `PARTS` and each of two samples at least; a batch below four is one part.

    Not of one sample: there many a ``squeeze()`` takes away the dimension that counts samples.

    Raises:
        UserError: the first dimensions of the batch's tensors don't count the same samples.
    """
    n = len(batch[0])
    count = max(min(PARTS, n // 2), 1)
    bounds = [n * k // count for k in range(count + 1)]
    return [consecutive(batch, first, last) for first, last in pairwise(bounds)]


def take(batch: Batch, samples: Sequence[int]) -> Batch:
    """The samples of a batch at some places, as a batch.

    Raises:
        UserError: the first dimensions of the batch's tensors don't count the same samples.
    """
    pieces = [[t[i * k : (i + 1) * k] for i in samples] for t, k in zip(batch, _rows_per_sample(batch), strict=True)]
    return tuple(torch.cat(piece) for piece in pieces)


def consecutive(batch: Batch, first: int, last: int) -> Batch:
    """The samples ``first`` to ``last`` − 1 of a batch, as views.

    Raises:
        UserError: the first dimensions of the batch's tensors don't count the same samples.
    """
    return tuple(t[first * k : last * k] for t, k in zip(batch, _rows_per_sample(batch), strict=True))


def _rows_per_sample(batch: Batch) -> list[int]:
    """How many rows of each tensor a sample has: one, or more where targets of sequences are flattened."""
    n = len(batch[0])
    if any(len(t) % n for t in batch):
        sizes = " and ".join(str(len(t)) for t in batch)
        raise UserError(f"the tensors of a batch have first dimensions {sizes}: each must count the same samples")
    return [len(t) // n for t in batch]


def joined(first: Batch, second: Batch) -> Batch | None:
    """Both batches as one; None where their tensors differ in form, as padded sequences do from batch to batch."""
    forms = [[(t.shape[1:], t.dtype) for t in batch] for batch in (first, second)]
    return tuple(torch.cat(two) for two in zip(first, second, strict=True)) if forms[0] == forms[1] else None


def disjoint(batches: Sequence[Batch], size: int, seed: int) -> list[Batch]:
    """Cut samples, in random order, into batches of one size; what the last one lacks to it is left out.

    Args:
        batches: batches that together are the samples.
        size: samples of each batch that is returned.
        seed: of the order.

    Raises:
        UserError: the batches differ in form, so that their samples can't be mixed.
    """
    forms = {tuple((t.shape[1:], t.dtype, k) for t, k in zip(b, _rows_per_sample(b), strict=True)) for b in batches}
    if len(forms) > 1:
        raise UserError(
            "the batches of the sample differ in form, so that their samples can't be mixed: pad them alike"
        )
    whole = tuple(torch.cat(tensors) for tensors in zip(*batches, strict=True))
    rows = _rows_per_sample(whole)
    order = torch.randperm(len(whole[0]), generator=torch.Generator().manual_seed(seed))
    chosen = order[: len(order) // size * size].split(size)
    return [
        tuple(
            t[(places[:, None] * k + torch.arange(k)).flatten().to(t.device)] for t, k in zip(whole, rows, strict=True)
        )
        for places in chosen
    ]
