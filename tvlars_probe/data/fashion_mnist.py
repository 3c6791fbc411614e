"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 60,000 + 10,000 grey images of 28×28, ten classes, as idx files."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.admission import limits
from tvlars_probe.admission.files import read_plain
from tvlars_probe.data.folders import removed_on_failure
from tvlars_probe.errors import DataError, RefusedFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.data.registry import Request

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_FOLDER = Path("data")

_BELOW = ("", "fashion-mnist", "raw", "FashionMNIST/raw")
"""Where the files may be below the folder that is given: in itself, as Debian has them, and as torchvision does."""

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_NAMES = [name for names in _FILES.values() for name in names]
# Moments of the training images, scaled to [0, 1].
_MEAN, _STD = (0.2860,), (0.3530,)


def load(request: Request) -> ImageData:
    """Read Fashion-MNIST from a folder of idx files, gzipped or not.

    Unless the request names a folder, the places where Debian's package and torchvision put it are tried.

    Raises:
        DataError: the data is not there, is damaged, or can't be downloaded.
    """
    from tvlars_probe.data.images import ImageData

    home = find(request.name, request.folder)
    if home is None and request.download:
        home = _download(request.folder or DOWNLOAD_FOLDER)
    if home is None:
        raise DataError(_not_found(request.folder))
    parts = {part: _read_part(home, *names) for part, names in _FILES.items()}
    return ImageData("fashion-mnist", parts["train"], parts["test"], 10)


def find(name: str, folder: Path | None) -> Path | None:
    """The first folder that holds all four files; None if there is none."""
    return next((place for place in _places(folder) if not _missing(place)), None)


def _places(folder: Path | None) -> list[Path]:
    """The folders that may hold the files."""
    homes = [folder] if folder else [DEBIAN_FOLDER, DOWNLOAD_FOLDER]
    return [home / below for home in homes for below in _BELOW]


def _missing(place: Path) -> list[str]:
    """The files that a folder lacks."""
    return [name for name in _NAMES if not _existing(place, name)]


def count(home: Path | None) -> tuple[int, int]:
    """Numbers of training and test images, from the headers of the label files."""
    assert home is not None
    train, test = (_existing(home, labels) for _, labels in _FILES.values())
    assert train is not None
    assert test is not None
    return _items(train), _items(test)


def _items(path: Path) -> int:
    """Number of items in an idx file: the big-endian integer after its four magic bytes; 0 if the header is cut off."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        try:
            header = stream.read(8)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged ({error}): get it again") from None
    return struct.unpack(">I", header[4:])[0] if len(header) == 8 else 0


def _existing(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _not_found(folder: Path | None) -> str:
    """The error's text: what was looked for and where, and which files a folder lacks that has some of them."""
    lacking = {place: _missing(place) for place in _places(folder)}
    looked = ", ".join(
        f"{place} (lacks {', '.join(missing)})" if len(missing) < len(_NAMES) else str(place)
        for place, missing in lacking.items()
    )
    return (
        f"Fashion-MNIST is not there: looked for {', '.join(_NAMES)}, each as it is or with .gz, in {looked}. Get it "
        f"by 'apt-get install dataset-fashion-mnist', or give its folder with --data-dir, or let torchvision fetch it "
        f"with --download"
    )


def _download(folder: Path) -> Path | None:
    from torchvision.datasets import FashionMNIST

    try:
        with removed_on_failure(folder):
            FashionMNIST(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{_not_found(folder)} (the download failed: {error})") from None
    return find("fashion-mnist", folder)


def _read_part(folder: Path, images_name: str, labels_name: str) -> TensorImages:
    import torch

    from tvlars_probe.data.images import TensorImages

    images_path, labels_path = _existing(folder, images_name), _existing(folder, labels_name)
    assert images_path is not None
    assert labels_path is not None
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{images_path} holds images {images.shape}, {labels_path} {len(labels)} labels: not Fashion-MNIST"
        )
    if labels.max() > 9:
        raise DataError(f"{labels_path} holds the label {labels.max()}; Fashion-MNIST's are 0 to 9")
    return TensorImages(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)), 255.0, _MEAN, _STD
    )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes into a new, writable array.

    Args:
        path: the file; gzipped if its name ends in ``.gz``.
        dimensions: the number of dimensions that the file must have.

    Raises:
        DataError: the file is damaged, or not an idx file of that kind; the message names it.
    """
    try:
        content = read_plain(path, limits.IDX_BYTES)
        if path.suffix == ".gz":
            # No more is unpacked than is allowed: a thousand times as much may be in it.
            with gzip.open(io.BytesIO(content)) as stream:
                content = stream.read(limits.IDX_BYTES)
    except (OSError, EOFError, zlib.error, RefusedFileError) as error:
        raise DataError(f"{path} is damaged ({getattr(error, 'reason', None) or error}): get it again") from None
    header = 4 + 4 * dimensions
    # The magic bytes are two zeros, the type (8 is unsigned byte) and the number of dimensions.
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path} is not an idx file of bytes in {dimensions} dimensions: get it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    # dtype=object multiplies Python integers: a damaged header may claim a product that overflows 64 bits.
    if len(content) - header != np.prod(shape, dtype=object):
        raise DataError(f"{path} is damaged: it claims the shape {shape} and holds {len(content) - header:,} bytes")
    # frombuffer's view of bytes is read-only, of which torch.from_numpy would warn.
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
