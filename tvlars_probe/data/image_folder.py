"""A user's own images: ``train/<class>/*`` and ``test/<class>/*``, held in memory.

The test part may also be named ``val``, ``valid`` or ``validation``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tvlars_probe.data.images import ImageData
    from tvlars_probe.data.registry import Request

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))
_TEST_NAMES = ("test", "val", "valid", "validation")


def load(request: Request) -> ImageData:
    """Read both parts of the folder, with the channel moments of the training images to normalise by.

    Raises:
        DataError: the folder has another layout, or an image can't be used.
    """
    import torch

    from tvlars_probe.data.decoding import decode_files
    from tvlars_probe.data.images import ImageData, TensorImages

    home = find(request.name, request.folder)
    if home is None:
        raise DataError(_not_found(request.folder))
    classes = [folder.name for folder in class_folders(home / "train")]
    if len(classes) < 2:
        raise DataError(f"{home / 'train'} has {len(classes)} class folder(s); a classifier needs two or more")
    train_files, train_labels = labelled_files(home / "train", classes)
    test_files, test_labels = labelled_files(_test_part(home), classes)
    # Both parts are decoded at once, which checks that they are of one size.
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
    """The folder, if it has both parts; None otherwise."""
    return folder if folder and (folder / "train").is_dir() and _test_part(folder).is_dir() else None


def count(home: Path | None) -> tuple[int, int]:
    """Numbers of training and test images."""
    assert home is not None
    parts = (home / "train", _test_part(home))
    train, test = (sum(p.suffix.lower() in SUFFIXES for p in part.glob("*/*")) for part in parts)
    return train, test


def class_folders(part: Path) -> list[Path]:
    """The folders of the classes, in order of their names; hidden folders are no classes."""
    return sorted(child for child in part.iterdir() if child.is_dir() and not child.name.startswith("."))


def labelled_files(part: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The image files of a part, in order, and the index of each file's class in ``classes``.

    Raises:
        DataError: a folder is none of the classes, a training class has no images, or the whole part has none.
    """
    files: list[Path] = []
    labels: list[int] = []
    known_as = {name: index for index, name in enumerate(classes)}
    for folder in class_folders(part):
        if folder.name not in known_as:
            known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise DataError(f"{folder} is no class of the training data (known: {known})")
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found and part.name == "train":
            raise DataError(f"{folder} holds no images: remove the folder, or put images of its class into it")
        files += found
        labels += [known_as[folder.name]] * len(found)
    if not files:
        raise DataError(f"{part} holds no images: they belong into one folder per class ({part}/<class>/name.png)")
    return files, labels


def channel_moments(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (samples, channels, height, width) bytes, scaled to [0, 1].

    A deviation is at least 1/255, so that a constant channel can be divided by it.
    """
    import torch

    means, deviations = [], []
    # Bytes have 256 values: their counts give the moments in double precision, with no copy of all pixels as floats.
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts @ values) / counts.sum()
        deviation = ((counts @ (values - mean).square()) / counts.sum()).sqrt()
        means.append(float(mean))
        deviations.append(max(float(deviation), 1 / 255))
    return tuple(means), tuple(deviations)


def _test_part(home: Path) -> Path:
    """The folder of the test part by the first name that is there; by the first name of all if none is."""
    return next((home / name for name in _TEST_NAMES if (home / name).is_dir()), home / _TEST_NAMES[0])


def _not_found(folder: Path | None) -> str:
    if folder is None:
        return "--ds imagefolder needs its folder: give it with --data-dir"
    return f"{folder} is no imagefolder: it needs train/<class>/ and one of {', '.join(_TEST_NAMES)}, likewise"
