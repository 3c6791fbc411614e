"""The UCI handwritten digits that come with scikit-learn: 1,797 images of 8×8, ten classes. They need no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.data.images import ImageData
    from tvlars_probe.data.registry import Request

# Moments of the 1,437 training images below, scaled to [0, 1].
_MEAN, _STD = (0.3051,), (0.3759,)


_TEST = 360


def find(name: str, folder: Path | None) -> Path | None:
    """None: the digits are part of scikit-learn, not in a folder."""
    return None


def count(home: Path | None) -> tuple[int, int]:
    """Numbers of training and test images."""
    return 1797 - _TEST, _TEST


def load(request: Request) -> ImageData:
    """The digits in a fixed stratified split: 1,437 images to train on, 360 to test."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from tvlars_probe.data.images import ImageData, TensorImages

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    whole = TensorImages(images, torch.tensor(digits.target, dtype=torch.int64), 16.0, _MEAN, _STD)
    train, test = train_test_split(range(len(whole)), test_size=_TEST, random_state=0, stratify=digits.target)
    return ImageData("digits", whole.subset(train), whole.subset(test), 10)
