"""Data sets by name. A new one needs an entry in `DATASETS` and a module that finds, counts and loads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from tvlars_probe.admission import limits
from tvlars_probe.errors import DataError, UserError, unknown

if TYPE_CHECKING:
    from tvlars_probe.data.images import ImageData


SPLITS = ("train", "val", "test")
"""The parts of a data set."""


class DataModule(Protocol):
    """The functions that a data set's module must have."""

    def find(self, name: str, folder: Path | None) -> Path | None:
        """The folder that holds the data: ``folder`` or one of the usual places.

        It is None if the data is not there, or comes with a package and needs no folder.
        """

    def count(self, home: Path | None) -> tuple[int, int]:
        """Numbers of training and test images in ``home``, which `find` has returned; no image is read."""

    def load(self, request: Request) -> ImageData:
        """Read the data, or raise a `DataError` that says how to get it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `DataModule.load`.

    Attributes:
        name: name of the data set.
        folder: where the data is; None for the data set's usual places.
        download: whether it may be downloaded.
        image_size: side of the square to which images of different sizes are brought; None leaves them.
        workers: threads that decode image files.
    """

    name: str
    folder: Path | None = None
    download: bool = False
    image_size: int | None = None
    workers: int = 4


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """A known data set.

    Attributes:
        module: name of its module in ``tvlars_probe.data``.
        about: what the data set is, in a few words.
        obtain: how to get it.
        is_augmented: whether classification trains on cropped, flipped and rotated images by default.
        flips: whether an image and its mirror image are of one class.
        included: whether it comes with a package that this one depends on.
        downloads: whether it is downloaded by default where it is missing.
    """

    module: str
    about: str
    obtain: str
    is_augmented: bool = False
    flips: bool = False
    included: bool = False
    downloads: bool = False

    @property
    def loader(self) -> DataModule:
        """The data set's module. It is imported here, so that the names in `DATASETS` cost no import of torch."""
        return cast("DataModule", import_module(f"tvlars_probe.data.{self.module}"))


AUGMENTATIONS = ("auto", "standard", "none")

_PHOTOS = {"is_augmented": True, "flips": True}

DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry("digits", "8x8 handwritten digits, 10 classes", "comes with scikit-learn", included=True),
    "fashion-mnist": DatasetEntry(
        "fashion_mnist",
        "28x28 grey images of clothes, 10 classes",
        "apt-get install dataset-fashion-mnist, or train with --download",
        flips=True,
    ),
    "cifar10": DatasetEntry(
        "cifar", "32x32 photographs, 10 classes", "train with --download", downloads=True, **_PHOTOS
    ),
    "cifar100": DatasetEntry(
        "cifar", "32x32 photographs, 100 classes", "train with --download", downloads=True, **_PHOTOS
    ),
    "tinyimagenet": DatasetEntry(
        "tiny_imagenet",
        "64x64 photographs, 200 classes",
        "unpack tiny-imagenet-200.zip (cs231n.stanford.edu) in data/, or tvlars-probe data import-tiny-imagenet",
        **_PHOTOS,
    ),
    "imagefolder": DatasetEntry(
        "image_folder", "your own: train/<class>/* and test/<class>/*", "give its folder with --data-dir", **_PHOTOS
    ),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data as a user chooses it.

    Attributes:
        name: one of `DATASETS`.
        folder: where the data is; None for the data set's usual places.
        download: whether it may be downloaded; None leaves that to the data set (CIFAR is downloaded, as in the
            official experiments).
        val: share of the training data to hold out, 0 <= val < 1; the same samples for every seed.
        limit: most training samples, and most test samples, that are used; the same ones for every seed.
        image_size: side of the square to which the images of an imagefolder are brought; None leaves them.
        augmentation: of the images on which a classifier trains: "standard" (crop, mirror image where the data set
            allows it, rotation), "none", or "auto" for the data set's default.
    """

    name: str = "digits"
    folder: str | None = None
    download: bool | None = None
    val: float = 0.0
    limit: int | None = None
    image_size: int | None = None
    augmentation: str = "auto"

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise unknown("data set", self.name, DATASETS)
        if not 0 <= self.val < 1:
            raise UserError(f"--val {self.val:g} is not a share of the training data (allowed: 0 <= val < 1)")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit} leaves no samples (allowed: 1 or more)")
        if self.image_size is not None and self.name != "imagefolder":
            raise UserError(f"--image-size is for --ds imagefolder; the images of {self.name} have one size")
        if self.folder is not None and DATASETS[self.name].included:
            raise UserError(f"--data-dir {self.folder} is of no use: {self.name} comes with the package")
        if self.augmentation not in AUGMENTATIONS:
            raise unknown("--augmentation", self.augmentation, AUGMENTATIONS)
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image-size {self.image_size} is too small (allowed: 1 or more)")
        if self.image_size is not None and self.image_size > (most := math.isqrt(limits.IMAGE_PIXELS)):
            raise UserError(f"--image-size {self.image_size} is too large (allowed: 1 to {most})")

    @property
    def augments(self) -> bool:
        """Whether a classifier trains on augmented images."""
        return self.augmentation == "standard" or (self.augmentation == "auto" and DATASETS[self.name].is_augmented)

    @property
    def flips(self) -> bool:
        """Whether an image and its mirror image are of one class."""
        return DATASETS[self.name].flips

    def load(self, workers: int = 4) -> ImageData:
        """Read the data, limit it, and hold out the validation part.

        Args:
            workers: threads that decode image files.

        Raises:
            DataError: the data is missing or damaged, or too small to hold out a share of each class.
        """
        request = Request(
            name=self.name,
            folder=Path(self.folder) if self.folder else None,
            download=DATASETS[self.name].downloads if self.download is None else self.download,
            image_size=self.image_size,
            workers=workers,
        )
        data = DATASETS[self.name].loader.load(request)
        # The limit comes first, so that ``val`` is a share of what remains.
        if self.limit is not None:
            train, test = (part.subset(_spread(len(part), self.limit)) for part in (data.train, data.test))
            data = replace(data, train=train, test=test)
        return _hold_out(data, self.val) if self.val else data


def _spread(size: int, wanted: int) -> list[int]:
    """Random indices, in order: data may be sorted by class, and its first samples would all be of one."""
    import numpy as np

    chosen = np.random.default_rng(0).permutation(size)[:wanted]
    return sorted(chosen.tolist())


def _hold_out(data: ImageData, share: float) -> ImageData:
    """Hold out ``share`` of each class for validation; the same samples at any seed of the run."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            range(len(data.train)), test_size=share, random_state=0, stratify=data.train.labels.numpy()
        )
    except ValueError:
        raise DataError(
            f"--val {share:g} can't be held out of {len(data.train)} training samples: each of the {data.num_classes} "
            f"classes needs at least one sample in either part (a share such as 0.1 does it where there are enough)"
        ) from None
    return replace(data, train=data.train.subset(sorted(kept)), val=data.train.subset(sorted(held)))
