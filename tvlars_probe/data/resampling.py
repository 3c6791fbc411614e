"""Linear resampling of whole batches: each sample has its own vertical and its own horizontal matrix.

Images are small (32 to 64 pixels a side), so that dense matrices in two batched products are the fast way.
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
    # A sample's channels share its matrices: stacked, all their rows are one product.
    rows = torch.bmm(x.reshape(samples, channels * height, width), horizontal.transpose(1, 2))
    rows = rows.view(samples, channels, height, -1)
    return torch.matmul(vertical[:, None], rows)


def window_matrices(start: Tensor, length: Tensor, side: int, flipped: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices that enlarge a window of each line to the whole line, by bicubic interpolation.

    The kernel is Keys' with a = −1/2, as in Pillow. It reads only the window's own pixels, and each output pixel's
    weights are normalised to sum to 1.

    Args:
        start: first pixel of each sample's window, (samples,).
        length: number of pixels in each window, at most ``side``, (samples,).
        side: number of pixels in a line.
        flipped: whether each sample's result is mirrored, (samples,).
        dtype: type of the weights.

    Returns:
        Weights, (samples, output pixels, input pixels), both ``side``.
    """
    # A window is never longer than the line, so nothing is reduced, and the kernel needs no widening against aliasing.
    pixel = torch.arange(side, device=start.device)
    # Reading the targets backwards mirrors the result without another operation.
    target = torch.where(flipped[:, None], side - 1 - pixel, pixel).to(dtype)
    # Pixel i covers the interval from i to i + 1, and its centre is i + 1/2, in the window as in the line.
    centre = start[:, None] + (target + 0.5) * (length[:, None] / side)
    weights = _keys((pixel + 0.5)[None, None, :] - centre[:, :, None])
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = weights.mul_(inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


def _keys(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel (1981); it overwrites its argument."""
    d = distance.abs_()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0))


def gaussian_matrices(sigma: Tensor, side: int) -> Tensor:
    """Matrices that blur each line by a Gaussian over at most 13 pixels; lines are mirrored at their ends.

    Args:
        sigma: standard deviation of each sample's Gaussian in pixels, above 0, (samples,).
        side: number of pixels in a line.

    Returns:
        Weights, (samples, output pixels, input pixels), both ``side``.
    """
    # Within this radius a pixel beyond one end is mirrored into the line at once, and never beyond the other end.
    radius = min(_BLUR_RADIUS, side - 1)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    # A softmax of the exponents is the Gaussian normalised to 1.
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]).square(), dim=1).to(sigma.dtype)
    pixel = torch.arange(side, device=sigma.device)
    # The pixel that each offset reads, mirrored without repeating the edge.
    source = (pixel[:, None] + offsets[None, :]).abs()
    source = torch.where(source >= side, 2 * (side - 1) - source, source)
    weights = torch.zeros(len(sigma), side, side, dtype=sigma.dtype, device=sigma.device)
    # Near the ends, two offsets read the same pixel: their weights add.
    return weights.scatter_add_(2, source.expand(len(sigma), -1, -1), kernel[:, None, :].expand(-1, side, -1))
