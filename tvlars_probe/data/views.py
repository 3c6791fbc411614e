"""The two views of Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230), made in whole batches.

A view is a resized crop, to which a mirror image, colour jitter, greyscale, blur and solarisation are applied with that
paper's probabilities. The first view is always blurred and never solarised; the second is blurred with probability 0.1
and solarised with 0.2. As in `tvlars_probe.data.augmentation`, draws are a function of (seed, epoch, index, view).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tvlars_probe.data.colour import COLOUR_OPERATIONS, greyscale, solarise
from tvlars_probe.data.draws import uniforms
from tvlars_probe.data.images import to_device
from tvlars_probe.data.resampling import gaussian_matrices, resample, window_matrices

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tvlars_probe.data.batches import Indices
    from tvlars_probe.data.images import TensorImages

    Floats = NDArray[np.float64]

AREA = (0.08, 1.0)
"""Smallest and largest share of the image's area in a crop; drawn uniformly."""
ASPECT = (3 / 4, 4 / 3)
"""Width over height of the narrowest and the widest crop; drawn log-uniformly."""
JITTERED, GREY = 0.8, 0.2
"""Probabilities of colour jitter and of greyscale."""
STRENGTHS = (0.4, 0.4, 0.2, 0.1)
"""Strengths of the jitter of brightness, contrast, saturation and hue."""
SIGMA = (0.1, 2.0)
"""Least and largest standard deviation of the blur, in pixels."""
BLURRED, SOLARISED = (1.0, 0.1), (0.0, 0.2)
"""Probabilities of blur and of solarisation, each for the first and the second view."""

_ATTEMPTS = 10  # draws of a crop that fits; if none does, the largest one in the middle is taken
_ORDERS = np.array(list(itertools.permutations(range(4))))
# Uniform numbers per view: area and aspect of each attempt, the crop's top and left, and 11 for the rest.
_COLUMNS = 2 * _ATTEMPTS + 13
_PIECE = 64  # samples computed at once on the CPU, so that they stay in its cache


@dataclass(frozen=True, slots=True)
class ViewDraw:
    """What is done to each sample for one view; arrays on the host, whose first dimension is the samples.

    Attributes:
        crop: top, left, height and width of the crop in pixels, (samples, 4).
        flipped: whether the sample is mirrored.
        jittered: whether its colours are jittered.
        order: indices of the four colour operations, in the order in which they are applied, (samples, 4).
        factors: the factors of brightness, contrast and saturation, and the shift of the hue in turns, (samples, 4).
        grey: whether the sample loses its colours.
        sigma: standard deviation of the blur in pixels; 0 for no blur.
        solarised: whether bright values are inverted.
    """

    crop: NDArray[np.int64]
    flipped: NDArray[np.bool_]
    jittered: NDArray[np.bool_]
    order: NDArray[np.int64]
    factors: Floats
    grey: NDArray[np.bool_]
    sigma: Floats
    solarised: NDArray[np.bool_]

    def __getitem__(self, span: slice) -> ViewDraw:
        return ViewDraw(*(getattr(self, name)[span] for name in self.__slots__))


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinViews:
    """Makes both views of each sample.

    Attributes:
        seed: seed of the run.
        flips: whether to mirror at all.
    """

    seed: int
    flips: bool = True

    def __call__(
        self, images: TensorImages, indices: Indices, epoch: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Two normalised views of the samples at ``indices`` as they look in ``epoch``."""
        first, second = (self._view(images, indices, epoch, dtype, view) for view in (0, 1))
        return first, second

    def _view(self, images: TensorImages, indices: Indices, epoch: int, dtype: torch.dtype, view: int) -> Tensor:
        device = images.images.device
        draw = self.draw(indices, epoch, view, side=images.images.shape[2:])
        chosen = images.at(indices)
        piece = _PIECE if device.type == "cpu" else max(len(indices), 1)
        out = torch.empty((len(indices), *images.images.shape[1:]), dtype=dtype, device=device)
        for start in range(0, len(indices), piece):
            span = slice(start, start + piece)
            raw = images.images.index_select(0, chosen[span])
            out[span] = images.standardised(render(raw.to(dtype, copy=True).div_(images.white), draw[span]))
        return out

    def draw(self, indices: Indices, epoch: int, view: int, *, side: tuple[int, ...]) -> ViewDraw:
        """Draw what is done to each sample for view 0 or 1; ``side`` is the images' (height, width)."""
        # View 0 of the generator belongs to classification.
        u = uniforms(indices, _COLUMNS, seed=self.seed, epoch=epoch, view=1 + view)
        crops, rest = u[:, : 2 * _ATTEMPTS + 2], u[:, 2 * _ATTEMPTS + 2 :]
        strengths = np.array(STRENGTHS)
        # The middle of each range changes nothing: factor 1, and for the hue shift 0.
        centre = np.array([1.0, 1.0, 1.0, 0.0])
        return ViewDraw(
            crop=_crops(crops, *side),
            flipped=(rest[:, 0] < 0.5) & self.flips,
            jittered=rest[:, 1] < JITTERED,
            order=_ORDERS[(rest[:, 2] * len(_ORDERS)).astype(np.int64)],
            factors=centre + (2 * rest[:, 3:7] - 1) * strengths,
            grey=rest[:, 7] < GREY,
            sigma=np.where(rest[:, 8] < BLURRED[view], SIGMA[0] + (SIGMA[1] - SIGMA[0]) * rest[:, 9], 0.0),
            solarised=rest[:, 10] < SOLARISED[view],
        )


def _crops(u: Floats, height: int, width: int) -> NDArray[np.int64]:
    """Top, left, height and width of each sample's crop: the first of ten draws that fits, as in torchvision."""
    # All attempts are made at once, since a loop until each sample fits would take the samples apart.
    area = (AREA[0] + (AREA[1] - AREA[0]) * u[:, :_ATTEMPTS]) * (height * width)
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = np.exp(low + (high - low) * u[:, _ATTEMPTS : 2 * _ATTEMPTS])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    # argmax finds the first attempt that fits, and 0 where none does: there the fallback replaces it.
    first = fits.argmax(axis=1)[:, None]
    fallback = _largest(height, width)
    any_fits = fits.any(axis=1)
    w = np.where(any_fits, np.take_along_axis(widths, first, 1)[:, 0], fallback[1])
    h = np.where(any_fits, np.take_along_axis(heights, first, 1)[:, 0], fallback[0])
    top = np.where(any_fits, np.floor(u[:, -2] * (height - h + 1)), (height - h) // 2)
    left = np.where(any_fits, np.floor(u[:, -1] * (width - w + 1)), (width - w) // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.int64)


def _largest(height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest crop whose aspect is allowed."""
    if width / height < ASPECT[0]:
        return round(width / ASPECT[0]), width
    if width / height > ASPECT[1]:
        return height, round(height * ASPECT[1])
    return height, width


def render(x: Tensor, draw: ViewDraw) -> Tensor:
    """Make the view that ``draw`` describes.

    Args:
        x: images, (samples, channels, height, width), with values in [0, 1].
        draw: what is done to each of them.

    Returns:
        Images of the same shape, with values in [0, 1].
    """
    height, width = x.shape[2:]
    top, left, h, w = (_on(x, column) for column in draw.crop.T)
    never = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    vertical = window_matrices(top, h, height, never, x.dtype)
    horizontal = window_matrices(left, w, width, _on(x, draw.flipped), x.dtype)
    # The bicubic kernel has negative weights, which overshoot at edges. The result is a new tensor, so that what
    # follows may work in place.
    x = resample(x, vertical, horizontal).clamp_(0, 1)
    if draw.jittered.any():
        x = _jitter(x, draw)
    x = _where(x, draw.grey, greyscale)
    if (draw.sigma > 0).any():
        at = np.flatnonzero(draw.sigma > 0)
        sigma = _on(x, draw.sigma[at])
        some = _on(x, at)
        blurred = resample(x[some], gaussian_matrices(sigma, height), gaussian_matrices(sigma, width))
        x = blurred if len(at) == len(x) else x.index_copy_(0, some, blurred)
    return _where(x, draw.solarised, solarise)


def _jitter(x: Tensor, draw: ViewDraw) -> Tensor:
    """Apply the colour operations to the jittered samples, each sample's in its own order."""
    # In each turn, all samples whose operation is the same are computed together: 16 calls at most for any batch.
    for turn in range(4):
        for k, operation in enumerate(COLOUR_OPERATIONS):
            at = np.flatnonzero(draw.jittered & (draw.order[:, turn] == k))
            if len(at):
                some = _on(x, at)
                factors = _on(x, draw.factors[at, k]).view(-1, 1, 1, 1)
                x.index_copy_(0, some, operation(x.index_select(0, some), factors))
    return x


def _where(x: Tensor, chosen: NDArray[np.bool_], operation: Any) -> Tensor:
    """Apply an operation to the chosen samples, in place."""
    # The choice is made on the host: a boolean mask on the device would make the host wait for its size.
    at = np.flatnonzero(chosen)
    if len(at):
        some = _on(x, at)
        x.index_copy_(0, some, operation(x.index_select(0, some)))
    return x


def _on(x: Tensor, values: NDArray[Any]) -> Tensor:
    """An array of the host as a tensor on the device of ``x``; floats are converted to the type of ``x``."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if tensor.is_floating_point():
        tensor = tensor.to(x.dtype)
    return to_device(tensor, x.device)
