"""Labelled images in memory, and the parts of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to ``device`` without waiting for CUDA; from unpinned memory, the host would wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# Tensors compare element by element: with eq=False, objects compare and hash by identity.
@dataclass(frozen=True, eq=False)
class TensorImages:
    """Labelled images held as one tensor; a batch is one gather, without Python per sample.

    Attributes:
        images: (samples, channels, height, width), raw values.
        labels: (samples,) int64.
        white: the raw value that is scaled to 1.
        mean: mean of each channel's values, scaled to [0, 1].
        std: standard deviation of each channel's values, scaled to [0, 1].
    """

    images: Tensor
    labels: Tensor
    white: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: NDArray[np.int64]) -> Tensor:
        """Indices from the host as a tensor on the images' device; the host doesn't wait for the copy."""
        return to_device(torch.from_numpy(indices), self.images.device)

    def batch(self, indices: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of the samples at ``indices`` (a tensor on the images' device)."""
        return self.normalised(self.images.index_select(0, indices), dtype), self.labels.index_select(0, indices)

    def normalised(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Raw values scaled to [0, 1], minus the mean, divided by the standard deviation, as a new tensor."""
        return self.standardised(raw.to(dtype, copy=True).div_(self.white))

    def standardised(self, scaled: Tensor) -> Tensor:
        """Values in [0, 1], minus the mean, divided by the standard deviation, in place."""
        if scaled.dtype not in self._moments:
            self._moments[scaled.dtype] = torch.tensor([self.mean, self.std], dtype=scaled.dtype, device=scaled.device)
        mean, std = self._moments[scaled.dtype][:, :, None, None]
        return scaled.sub_(mean).div_(std)

    @cached_property
    def _moments(self) -> dict[torch.dtype, Tensor]:
        """Mean and deviation as a tensor on the images' device, by type: each is copied there once."""
        return {}

    def to(self, device: torch.device) -> TensorImages:
        """The same images on ``device``."""
        return self._with(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Sequence[int] | Tensor) -> TensorImages:
        """Some of the samples, in the order of ``indices``."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self._with(self.images[chosen], self.labels[chosen])

    def _with(self, images: Tensor, labels: Tensor) -> TensorImages:
        return TensorImages(images, labels, self.white, self.mean, self.std)

    def fingerprint(self) -> str:
        """Hash of the pixels and labels, which must be on the host; 16 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification.

    Attributes:
        name: the name in `tvlars_probe.data.registry.DATASETS`.
        train: training samples.
        test: test samples.
        num_classes: number of classes; labels are 0 to num_classes − 1.
        val: samples held out of the training data; None if none are.
    """

    name: str
    train: TensorImages
    test: TensorImages
    num_classes: int
    val: TensorImages | None = None

    @property
    def channels(self) -> int:
        """Number of an image's channels."""
        return int(self.train.images.shape[1])

    def describe(self) -> dict[str, Any]:
        """The manifest's entry for the data."""
        return {
            "name": self.name,
            "train": len(self.train),
            "val": 0 if self.val is None else len(self.val),
            "test": len(self.test),
            "classes": self.num_classes,
            "image": list(self.train.images.shape[1:]),
            "fingerprint": self.train.fingerprint(),
        }
