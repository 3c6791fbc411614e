"""Linear resampling of whole batches, each sample with its own: one matrix for the rows and one for the columns.

Images are small (32 to 64 pixels a side), so that dense matrices and two batched products beat anything cleverer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_BLUR_RADIUS = 6  # three deviations of the widest blur


def resample(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """``vertical @ image @ horizontalᵀ`` for each sample and channel.

    Args:
        x: (samples, channels, height, width).
        vertical: (samples, new height, height).
        horizontal: (samples, new width, width).
    """
    samples, channels, height, width = x.shape
    rows = torch.bmm(x.reshape(samples, channels * height, width), horizontal.transpose(1, 2))
    rows = rows.view(samples, channels, height, -1)
    return torch.matmul(vertical[:, None], rows)


def window_matrices(start: Tensor, length: Tensor, side: int, flipped: Tensor, dtype: torch.dtype) -> Tensor:
    """Enlarge a window of each line to the whole line, by bicubic interpolation.

    Keys' kernel with a = −1/2, as Pillow has it, over the window's own pixels, its weights normalised to 1.

    Args:
        start: first pixel of each sample's window, (samples,).
        length: its pixels, at most ``side``.
        side: pixels of a line.
        flipped: whether the result is mirrored.
        dtype: of the weights.

    Returns:
        (samples, side, side).
    """
    pixel = torch.arange(side, device=start.device)
    target = torch.where(flipped[:, None], side - 1 - pixel, pixel).to(dtype)
    centre = start[:, None] + (target + 0.5) * (length[:, None] / side)
    weights = _keys((pixel + 0.5)[None, None, :] - centre[:, :, None])
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = weights.mul_(inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


def _keys(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel (1981)."""
    d = distance.abs_()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0))


def gaussian_matrices(sigma: Tensor, side: int) -> Tensor:
    """Blur each line by a Gaussian of ``sigma`` pixels over at most 13 pixels, mirrored at the ends.

    Args:
        sigma: of each sample, above 0, (samples,).
        side: pixels of a line.

    Returns:
        (samples, side, side).
    """
    radius = min(_BLUR_RADIUS, side - 1)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]).square(), dim=1).to(sigma.dtype)
    pixel = torch.arange(side, device=sigma.device)
    # Which pixel each offset reads, reflected without repeating the edge.
    source = (pixel[:, None] + offsets[None, :]).abs()
    source = torch.where(source >= side, 2 * (side - 1) - source, source)
    weights = torch.zeros(len(sigma), side, side, dtype=sigma.dtype, device=sigma.device)
    return weights.scatter_add_(2, source.expand(len(sigma), -1, -1), kernel[:, None, :].expand(-1, side, -1))
