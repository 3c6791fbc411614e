"""Changes of colour in whole batches, with one factor per sample; values are in [0, 1].

The definitions are torchvision's for floating-point images. Images are (samples, channels, height, width), factors
(samples, 1, 1, 1). Images of one channel have neither saturation nor hue: those operations return them unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601


def luminance(x: Tensor) -> Tensor:
    """Luminance of each pixel, (samples, 1, height, width)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    sum_: Tensor = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return sum_


def greyscale(x: Tensor) -> Tensor:
    """Luminance in every channel, as a view that must not be written to: its channels share memory."""
    return luminance(x).expand_as(x)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """factor·x."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """factor·x + (1 − factor)·m, where m is the image's mean luminance."""
    return _blend(x, luminance(x).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """factor·x + (1 − factor)·luminance."""
    return x if x.shape[1] == 1 else _blend(x, luminance(x), factor)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Move the hue in HSV by ``turns`` turns of the colour circle.

    Let V be a pixel's largest channel, C its distance from the smallest, and h the hue in turns. Then each channel is
    V − C·clamp(min(k, 4 − k), 0, 1) with k = (a + 6·h) mod 6, where a is 5 for red, 3 for green and 1 for blue.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    # A grey pixel has C = 0 and no hue. Dividing by 1 instead gives it any hue, which the factor C below removes.
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
    """1 − x where x is at least 1/2, and x elsewhere."""
    return torch.where(x >= 0.5, 1 - x, x)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, x, factor).clamp_(0, 1)


COLOUR_OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)
"""The operations of colour jitter, in the order in which `tvlars_probe.data.views.ViewDraw` holds their factors."""
