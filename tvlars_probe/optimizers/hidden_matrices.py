"""Which of a model's parameters Muon takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


def hidden_matrices(params: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Part the weights that Muon is for from all others.

    Muon is for the two-dimensional weights of hidden layers. The input's and the output's layer are given to another
    optimizer, although their weights may be matrices, and so are biases and what normalises (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). torch's class refuses a convolution's kernel of four dimensions, which
    Jordan's takes as a matrix.

    Args:
        params: a model's parameters in order, so that the first and the last of more than one dimension are the weights
            of the input's and of the output's layer.

    Returns:
        Muon's parameters, and the others, each in order.

    Raises:
        UserError: none is Muon's.
    """
    everything = list(params)
    weights = [p for p in everything if p.ndim > 1]
    chosen = {id(p) for p in weights[1:-1] if p.ndim == 2}
    if not chosen:
        raise UserError(
            "--opt muon is for matrices between a model's first and last layer, and this model has none (a "
            "convolution's kernel has four dimensions): use --model mlp or --mode bt, or another --opt"
        )
    return [p for p in everything if id(p) in chosen], [p for p in everything if id(p) not in chosen]
