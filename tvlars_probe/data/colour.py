"""Changes of colour of whole batches, each sample by its own factor; values in [0, 1].

They are torchvision's definitions for floating-point images. Grey images have neither saturation nor hue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601


def luminance(x: Tensor) -> Tensor:
    """(samples, 1, height, width)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    sum_: Tensor = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return sum_


def greyscale(x: Tensor) -> Tensor:
    """Luminance in every channel."""
    return luminance(x).expand_as(x)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """factor·x."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """factor·x + (1 − factor)·m, m the image's mean luminance."""
    return _blend(x, luminance(x).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """factor·x + (1 − factor)·luminance."""
    return x if x.shape[1] == 1 else _blend(x, luminance(x), factor)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Hue in HSV moved by so many turns of the colour circle.

    With V the largest channel and C its distance from the smallest, a channel at angle a of the circle (in sixths; red
    5, green 3, blue 1) is V − C·clamp(min(k, 4 − k), 0, 1), k = (a + 6·hue) mod 6.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    safe = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    ).add_(6 * turns)
    angles = torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    k = (sixths + angles).remainder_(6)
    return value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma)


def solarise(x: Tensor) -> Tensor:
    """1 − x where x is at least a half."""
    return torch.where(x >= 0.5, 1 - x, x)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, x, factor).clamp_(0, 1)


COLOUR_OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)
"""In the order of their factors."""
