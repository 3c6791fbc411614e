"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 photographs of 32×32, read by torchvision.

The files are pickles, which can run code. torchvision unpickles only files whose checksums are the known ones.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission import limits
from tvlars_probe.admission.files import refuse_larger
from tvlars_probe.data.folders import removed_on_failure
from tvlars_probe.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from tvlars_probe.errors import DataError, RefusedFileError

if TYPE_CHECKING:
    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.data.registry import Request

DOWNLOAD_FOLDER = Path("data")

_CLASSES = {"cifar10": 10, "cifar100": 100}
_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


def load(request: Request) -> ImageData:
    """Read both parts.

    The request's folder is the one that holds ``cifar-10-batches-py`` or ``cifar-100-python``, or that one itself.

    Raises:
        DataError: the data is not there, is damaged, or can't be downloaded.
    """
    from tvlars_probe.data.images import ImageData

    root = _root(request.name, request.folder)
    _refuse_large_files(request.name, root)
    try:
        # torchvision makes the folder before it downloads.
        with removed_on_failure(root):
            train, test = (_read(request.name, root, train=train, download=request.download) for train in (True, False))
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(_missing(request, root, error)) from None
    return ImageData(request.name, train, test, _CLASSES[request.name])


def find(name: str, folder: Path | None) -> Path | None:
    """The folder that holds the data set's batches; None if it isn't there."""
    home = _root(name, folder) / _FOLDERS[name]
    return home if home.is_dir() else None


def count(home: Path | None) -> tuple[int, int]:
    """Numbers of training and test images; the checksums admit no other files."""
    return 50_000, 10_000


def _root(name: str, folder: Path | None) -> Path:
    """What torchvision calls root: the folder above the batches."""
    if folder is None:
        return DOWNLOAD_FOLDER
    return folder.parent if folder.name == _FOLDERS[name] else folder


def _refuse_large_files(name: str, root: Path) -> None:
    """Refuse files that no checksum should be taken of: torchvision takes one of each, however long that takes.

    Raises:
        DataError: one has more bytes than any of the data set's.
    """
    home = root / _FOLDERS[name]
    for path in (*(home.iterdir() if home.is_dir() else ()), root / _ARCHIVES[name]):
        if path.is_file():  # torchvision passes over what isn't
            try:
                refuse_larger(path, limits.CIFAR_BYTES)
            except RefusedFileError as error:
                raise DataError(f"{name}: {error}; get it again") from None


def _read(name: str, root: Path, *, train: bool, download: bool) -> TensorImages:
    import torch
    from torchvision import datasets

    from tvlars_probe.data.images import TensorImages

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    part = kind(str(root), train=train, download=download)
    # torchvision keeps the channels last.
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(part.targets, dtype=torch.int64)
    return TensorImages(images, labels, 255.0, IMAGENET_MEAN, IMAGENET_STD)


def _missing(request: Request, root: Path, error: Exception) -> str:
    home = root / _FOLDERS[request.name]
    give = f"give the folder that holds {home.name} with --data-dir"
    if request.download:
        reason = str(error) or type(error).__name__
        return f"{request.name} is not in {root}, and fetching it failed: {reason} (where there is no network, {give})"
    state = "is incomplete or damaged" if home.is_dir() else "is not there"
    return f"{request.name}: {home} {state}; fetch it with --download, or {give}"
