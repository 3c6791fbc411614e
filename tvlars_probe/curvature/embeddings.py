"""Embeddings with ``max_norm`` while a Hessian is computed.

Such a layer rescales, in place, the rows that it looks up, and then differentiates as if they had always been so. Rows
that change from pass to pass are no weights at which a function has a Hessian. So the rows that the sample needs are
rescaled once, before anything is measured, and held: f is the loss as a function of the rescaled rows.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.collectives import Ranks

    Layer = nn.Embedding | nn.EmbeddingBag


def rescale_rows(model: nn.Module, shards: Ranks, forward: Callable[[], object]) -> None:
    """Rescale the rows that the sample looks up on any rank, and switch ``max_norm`` off.

    Args:
        model: its layers and weights are changed; the caller puts them back.
        shards: the ranks that hold the sample.
        forward: passes this rank's whole sample through the model.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None]
    if not layers:
        return
    with torch.no_grad():
        bounds = {layer: _switch_off(layer) for layer in layers}
        used = _looked_up(layers, forward)
        for layer in layers:
            # Every rank rescales every rank's rows: tensors' norms, and heads tied to them, are then the same on all.
            rows = shards.max(used[layer]).nonzero().flatten()
            # Not F.embedding: through .data autograd doesn't count the change, and graphs of the caller's stay valid.
            torch.embedding_renorm_(layer.weight.data, rows, bounds[layer], layer.norm_type)


def _switch_off(layer: Layer) -> float:
    """Set ``max_norm`` to None, and return what it was."""
    bound = layer.max_norm
    assert bound is not None
    layer.max_norm = None
    return bound


def _looked_up(layers: list[Layer], forward: Callable[[], object]) -> dict[Layer, torch.Tensor]:
    """A 1 for each row of each layer that ``forward`` looks up, 0 for the others."""
    used = {layer: torch.zeros(len(layer.weight), dtype=torch.uint8, device=layer.weight.device) for layer in layers}

    def note(layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        used[layer][(args[0] if args else options["input"]).flatten()] = 1

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        forward()
    return used
