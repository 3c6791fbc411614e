"""Anyone's own images: ``train/<class>/*`` and ``test/<class>/*`` (or ``val``, ``valid``), held in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tvlars_probe.data.decoding import decode_files
from tvlars_probe.data.images import ImageData, TensorImages
from tvlars_probe.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.data.registry import Request

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))
_TEST_NAMES = ("test", "val", "valid", "validation")


def load(request: Request) -> ImageData:
    """The folder's two parts, normalised by the training images' own means and deviations.

    Raises:
        DataError: the folder is not laid out so, or an image can't be used.
    """
    home = find(request.name, request.folder)
    if home is None:
        raise DataError(_not_found(request.folder))
    classes = [folder.name for folder in class_folders(home / "train")]
    if len(classes) < 2:
        raise DataError(f"{home / 'train'} has {len(classes)} class folder(s); a classifier needs two or more")
    train_files, train_labels = labelled_files(home / "train", classes)
    test_files, test_labels = labelled_files(_test_part(home), classes)
    images = decode_files([*train_files, *test_files], request.image_size, request.workers)
    mean, std = channel_moments(images[: len(train_files)])
    train, test = (
        TensorImages(some, torch.tensor(labels, dtype=torch.int64), 255.0, mean, std)
        for some, labels in (
            (images[: len(train_files)], train_labels),
            (images[len(train_files) :], test_labels),
        )
    )
    return ImageData(request.name, train, test, len(classes))


def find(name: str, folder: Path | None) -> Path | None:
    """The folder, if it has both parts."""
    return folder if folder and (folder / "train").is_dir() and _test_part(folder).is_dir() else None


def count(home: Path | None) -> tuple[int, int]:
    """Training and test images."""
    assert home is not None
    parts = (home / "train", _test_part(home))
    train, test = (sum(p.suffix.lower() in SUFFIXES for p in part.glob("*/*")) for part in parts)
    return train, test


def class_folders(part: Path) -> list[Path]:
    """One folder per class, in order of their names; hidden ones are none."""
    return sorted(child for child in part.iterdir() if child.is_dir() and not child.name.startswith("."))


def labelled_files(part: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The images of a part in order, and the index of each one's class.

    Raises:
        DataError: a class is unknown, or holds no image.
    """
    files: list[Path] = []
    labels: list[int] = []
    for folder in class_folders(part):
        if folder.name not in classes:
            known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise DataError(f"{folder} is no class of the training data (known: {known})")
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found and part.name == "train":
            raise DataError(f"{folder} holds no images: remove the folder, or put images of its class into it")
        files += found
        labels += [classes.index(folder.name)] * len(found)
    if not files:
        raise DataError(f"{part} holds no images: they belong into one folder per class ({part}/<class>/name.png)")
    return files, labels


def channel_moments(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (samples, channels, height, width) bytes, scaled to [0, 1]."""
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts @ values) / counts.sum()
        deviation = ((counts @ (values - mean).square()) / counts.sum()).sqrt()
        means.append(float(mean))
        deviations.append(max(float(deviation), 1 / 255))
    return tuple(means), tuple(deviations)


def _test_part(home: Path) -> Path:
    return next((home / name for name in _TEST_NAMES if (home / name).is_dir()), home / _TEST_NAMES[0])


def _not_found(folder: Path | None) -> str:
    if folder is None:
        return "--ds imagefolder needs its folder: give it with --data-dir"
    return f"{folder} is no imagefolder: it needs train/<class>/ and one of {', '.join(_TEST_NAMES)}, likewise"
