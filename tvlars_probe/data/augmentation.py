"""Augmentation for classification: training images as they are, or cropped, flipped and rotated in whole batches.

Each sample's draw is a function of (seed, epoch, index, view). It is made on the host, which knows the indices. The
pixels are moved on the images' device, and the host doesn't wait for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from tvlars_probe.data.draws import uniforms
from tvlars_probe.data.images import to_device

if TYPE_CHECKING:
    from torch import Tensor

    from tvlars_probe.data.batches import Indices
    from tvlars_probe.data.images import TensorImages
    from tvlars_probe.data.registry import DataConfig

MOST_PADDING = 4
"""Most pixels by which a crop may be shifted in each direction; for a side below 32 it is an eighth of the side."""

DEGREES = 15.0
"""Largest angle of rotation, in degrees, in either direction."""


class Augmentation(Protocol):
    """Makes normalised batches."""

    def __call__(
        self, images: TensorImages, indices: Indices, epoch: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """The samples at ``indices`` as they look in ``epoch``, and their labels.

        Views for training without labels (`tvlars_probe.data.views`) return a second view in place of the labels.
        """


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Images as they are."""

    def __call__(
        self, images: TensorImages, indices: Indices, epoch: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        return images.batch(images.at(indices), dtype)


def augmentation(config: DataConfig, seed: int) -> Augmentation:
    """The augmentation for classification that a user has chosen."""
    return CropFlipRotate(seed=seed, flips=config.flips) if config.augments else Unchanged()


@dataclass(frozen=True, slots=True)
class Placements:
    """Where each sample's pixels come from: a crop, then a mirror image, then a rotation; each field is (samples,).

    Attributes:
        top: rows by which the crop is moved down.
        left: columns by which the crop is moved to the right.
        flipped: whether the crop is mirrored.
        angle: radians by which it is then turned, counter-clockwise.
    """

    top: Tensor
    left: Tensor
    flipped: Tensor
    angle: Tensor

    def to(self, device: torch.device) -> Placements:
        """The same placements on ``device``."""
        return Placements(*(to_device(t, device) for t in (self.top, self.left, self.flipped, self.angle)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CropFlipRotate:
    """Crops each image with a black margin, mirrors it with probability 1/2, and rotates it by a random angle.

    This is torchvision's RandomCrop(padding=4), RandomHorizontalFlip and RandomRotation(15), one after the other. Each
    output pixel is one input pixel (the nearest), or black outside the image, so one gather does all three.

    Attributes:
        seed: seed of the run.
        flips: whether to mirror at all.
        degrees: largest angle of rotation, in either direction.
    """

    seed: int
    flips: bool = True
    degrees: float = DEGREES

    def __call__(
        self, images: TensorImages, indices: Indices, epoch: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        device = images.images.device
        height, width = images.images.shape[2:]
        placements = self.draw(indices, epoch, padding=padding_of(height, width)).to(device)
        chosen = images.at(indices)
        pixels = move_pixels(images.images.index_select(0, chosen), placements)
        return images.normalised(pixels, dtype), images.labels.index_select(0, chosen)

    def draw(self, indices: Indices, epoch: int, *, padding: int) -> Placements:
        """Placements of the samples at ``indices``, on the host."""
        u = uniforms(indices, 4, seed=self.seed, epoch=epoch)
        # Uniform over −padding, ..., padding: u is below 1, so the floor never reaches 2·padding + 1.
        shifts = np.floor(u[:, :2] * (2 * padding + 1)).astype(np.int64) - padding
        flipped = (u[:, 2] < 0.5) & self.flips
        angle = ((2 * u[:, 3] - 1) * math.radians(self.degrees)).astype(np.float32)
        top, left = torch.from_numpy(shifts).unbind(1)
        return Placements(top, left, torch.from_numpy(flipped), torch.from_numpy(angle))


def padding_of(height: int, width: int) -> int:
    """Most pixels by which a crop of an image of this size may be shifted: see `MOST_PADDING`."""
    return min(MOST_PADDING, min(height, width) // 8)


def move_pixels(images: Tensor, placements: Placements) -> Tensor:
    """Cropped, mirrored and turned images; 0 where a pixel has no source.

    Args:
        images: (samples, channels, height, width), any type.
        placements: one for each sample, on the same device.
    """
    samples, channels, height, width = images.shape
    rows, columns, inside = _sources(placements, height, width)
    # gather needs valid indices everywhere: pixels without a source read pixel 0, and are blackened below. The indices
    # are exact in float32, which holds integers to 2²⁴, for images of up to 4096×4096.
    at = (rows * width + columns).masked_fill_(~inside, 0).to(torch.int64).view(samples, 1, height * width)
    moved = images.flatten(2).gather(2, at.expand(-1, channels, -1)).view_as(images)
    return moved.mul_(inside[:, None])


def _sources(placements: Placements, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source row and column of each output pixel, and whether it has a source; each (samples, height, width)."""
    # From output to input the steps are undone in reverse order: rotation about the centre, mirror image, crop.
    cos, sin = placements.angle.cos()[:, None, None], placements.angle.sin()[:, None, None]
    y = (torch.arange(height, device=cos.device) - (height - 1) / 2)[None, :, None]
    x = (torch.arange(width, device=cos.device) - (width - 1) / 2)[None, None, :]
    columns = (cos * x - sin * y).add_((width - 1) / 2).round_()
    rows = (sin * x + cos * y).add_((height - 1) / 2).round_()
    # torchvision rotates the finished crop: what turns in from beyond its edge is black, though the image may go on.
    inside = _within(rows, height) & _within(columns, width)
    columns = torch.where(placements.flipped[:, None, None], width - 1 - columns, columns)
    rows, columns = rows.add_(placements.top[:, None, None]), columns.add_(placements.left[:, None, None])
    return rows, columns, inside & _within(rows, height) & _within(columns, width)


def _within(values: Tensor, length: int) -> Tensor:
    return (values >= 0) & (values < length)
