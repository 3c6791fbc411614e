"""Initialisation of weights by name (``--winit``): Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor, nn

Initialization = Literal["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]
INITIALIZATIONS: tuple[str, ...] = get_args(Initialization)


def initialize(model: nn.Module, name: str) -> None:
    """Draw all weights of convolutions and linear layers anew, from torch's global generator.

    The standard deviation is √(2/(fan_in + fan_out)) for xavier and √(2/fan_in) for kaiming, with fan_in and fan_out of
    the tensor. The distribution is normal, or the uniform one of the same deviation. Biases and normalisation layers
    keep what they have. "default" changes nothing.

    Args:
        model: changed in place.
        name: one of `INITIALIZATIONS`.
    """
    if name == "default":
        return
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    for module in model.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            _draw(module.weight, name)


def _draw(weight: Tensor, name: str) -> None:
    from torch.nn import init

    if name == "xavier_uniform":
        init.xavier_uniform_(weight)
    elif name == "xavier_normal":
        init.xavier_normal_(weight)
    elif name == "kaiming_uniform":
        init.kaiming_uniform_(weight, nonlinearity="relu")
    else:
        init.kaiming_normal_(weight, nonlinearity="relu")
