"""Tiny ImageNet: 100,000 + 10,000 photographs of 64×64, 200 classes; its validation part is the test data here.

It is read from the folder of the original archive, whose JPEG files are decoded, or from the arrays that `import_into`
has written into ``packed/`` in that folder, which need no decoding.
"""

from __future__ import annotations

import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tvlars_probe.data.decoding import bombs_refused, decode, decode_files
from tvlars_probe.data.folders import removed_on_failure
from tvlars_probe.data.images import ImageData, TensorImages
from tvlars_probe.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from tvlars_probe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tvlars_probe.data.registry import Request

FOLDER_NAME = "tiny-imagenet-200"
USUAL_PLACE = Path("data") / FOLDER_NAME
PACKED = "packed"

_SPLITS = {"train": ("train",), "test": ("val", "test")}
"""How the names of each part's parquet files begin, in order of preference: the original test split has no labels."""


def load(request: Request) -> ImageData:
    """Read both parts.

    Raises:
        DataError: the data is not there, or damaged.
    """
    home = find(request.name, request.folder)
    if home is None:
        raise DataError(
            f"Tiny ImageNet is not in {request.folder or USUAL_PLACE}: unpack tiny-imagenet-200.zip "
            f"(cs231n.stanford.edu) there, or turn parquet files of its Hugging Face copy into what is read here by "
            f"'tvlars-probe data import-tiny-imagenet FOLDER', or give its folder with --data-dir"
        )
    packed = home / PACKED
    train, test = _load_packed(packed) if packed.is_dir() else _load_folder(home, request.workers)
    return ImageData(request.name, train, test, int(train.labels.max()) + 1)


def find(name: str, folder: Path | None) -> Path | None:
    """The folder that holds ``packed/``, or ``train/`` and ``val/``; None if there is none."""
    places = [folder, folder / FOLDER_NAME] if folder else [USUAL_PLACE]
    return next((p for p in places if (p / PACKED).is_dir() or ((p / "train").is_dir() and (p / "val").is_dir())), None)


def count(home: Path | None) -> tuple[int, int]:
    """Numbers of training and test images."""
    assert home is not None
    if (home / PACKED).is_dir():
        train, test = (len(_array(home / PACKED, f"{part}-labels")) for part in _SPLITS)
        return train, test
    return sum(1 for _ in home.glob("train/*/images/*.JPEG")), sum(1 for _ in home.glob("val/images/*.JPEG"))


def _load_folder(home: Path, workers: int) -> tuple[TensorImages, TensorImages]:
    classes = sorted(child.name for child in (home / "train").iterdir() if child.is_dir())
    train = [
        (path, classes.index(name)) for name in classes for path in sorted((home / "train" / name).rglob("*.JPEG"))
    ]
    test = [*_annotated(home / "val", classes)]
    if not train or not test:
        raise DataError(f"{home} holds no images: expected train/<class>/images/*.JPEG and val/images/*.JPEG")
    # Both parts are decoded at once, which checks that they are of one size.
    images = decode_files([path for path, _ in (*train, *test)], None, workers)
    labels = torch.tensor([label for _, label in (*train, *test)], dtype=torch.int64)
    return _part(images[: len(train)], labels[: len(train)]), _part(images[len(train) :], labels[len(train) :])


def _annotated(folder: Path, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """The image files of the validation part with their classes, which a table lists."""
    table = folder / "val_annotations.txt"
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{table} can't be read ({error.strerror}): get Tiny ImageNet again") from None
    known = {name: index for index, name in enumerate(classes)}
    for number, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        label = known.get(rest.partition("\t")[0])
        if label is None:
            raise DataError(f"{table}, line {number}: {line[:60]!r} names no class of the training data")
        yield folder / "images" / name, label


def _load_packed(packed: Path) -> tuple[TensorImages, TensorImages]:
    parts = []
    for part in _SPLITS:
        images, labels = _array(packed, f"{part}-images"), _array(packed, f"{part}-labels")
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != (len(images),) or not len(images):
            raise DataError(f"{packed} is damaged: {part} has images {images.shape} and labels {labels.shape}")
        parts.append(_part(torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels, dtype=np.int64))))
    _check_labels(packed, parts[0].labels, parts[1].labels)
    return parts[0], parts[1]


def _array(packed: Path, name: str) -> NDArray[np.uint8]:
    path = packed / f"{name}.npy"
    try:
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} can't be read ({error}): import Tiny ImageNet again") from None
    return array


def _part(images: torch.Tensor, labels: torch.Tensor) -> TensorImages:
    return TensorImages(images, labels, 255.0, IMAGENET_MEAN, IMAGENET_STD)


def import_into(home: Path, source: Path, workers: int = 4) -> tuple[int, int]:
    """Write ``home/packed`` from parquet files (columns image: {bytes}, label) or from the original folder.

    Args:
        home: the folder in which the loader looks.
        source: the folder of the parquet files (``train-*.parquet`` and ``val*-*.parquet``, at any depth), or the
            original folder.
        workers: number of threads that decode.

    Returns:
        Numbers of training and test images.

    Raises:
        DataError: the source is neither kind of folder or is damaged, or ``home/packed`` exists already.
    """
    if (home / PACKED).exists():
        raise DataError(f"{home / PACKED} is there already: remove it to import again")
    parquet = {part: _parquet_files(source, names) for part, names in _SPLITS.items()}
    is_folder = (source / "train").is_dir() and (source / "val").is_dir() and not any(parquet.values())
    if not is_folder and not all(parquet.values()):
        raise DataError(
            f"{source} holds neither train-*.parquet and val*-*.parquet nor tiny-imagenet-200's train/, val/"
        )
    # Written aside and renamed at the end: ``packed/`` is either complete or not there.
    temporary = home / f".{PACKED}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed import has left
    with removed_on_failure(temporary):
        temporary.mkdir(parents=True)
        if is_folder:
            sizes = [_save(temporary, n, p.images, p.labels) for n, p in
                     zip(_SPLITS, _load_folder(source, workers), strict=True)]  # fmt: skip
        else:
            decoded = {part: _decode_parquet(files, workers) for part, files in parquet.items()}
            _check_labels(source, *(labels for _, labels in decoded.values()))
            sizes = [_save(temporary, part, *content) for part, content in decoded.items()]
        temporary.rename(home / PACKED)
    return sizes[0], sizes[1]


def _parquet_files(source: Path, names: tuple[str, ...]) -> list[Path]:
    """The parquet files whose names begin with the first of ``names`` for which there are any."""
    groups = (sorted(source.rglob(f"{name}*.parquet")) for name in names)
    return next((group for group in groups if group), [])


def _check_labels(where: Path, train: torch.Tensor, test: torch.Tensor) -> None:
    """Raise DataError unless the training labels are 0, 1, ..., without a gap, and the test labels among them."""
    classes = int(train.max()) + 1
    if len(train.unique()) != classes or int(train.min()) < 0:
        raise DataError(f"{where}: the training labels aren't 0, 1, ..., {classes - 1}")
    if int(test.min()) < 0 or int(test.max()) >= classes:
        bad = int(test.min()) if int(test.min()) < 0 else int(test.max())
        raise DataError(
            f"{where}: a test image has the label {bad}, the training data 0 to {classes - 1} (a test split without "
            f"labels can't be used: keep the valid-*.parquet files)"
        )


def _decode_parquet(files: Sequence[Path], workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for file in files:
        try:
            with bombs_refused(), ThreadPoolExecutor(max(workers, 1)) as pool:
                # In batches, so that a file's encoded images are never all in memory as Python objects.
                for batch in pq.ParquetFile(file).iter_batches(1024, columns=["image", "label"]):
                    rows = batch.to_pylist()
                    names = (f"{file}, image {len(images) + k}" for k in range(len(rows)))
                    # map takes all names at once, before ``images`` grows.
                    images += pool.map(decode, (row["image"]["bytes"] for row in rows), itertools.repeat(None), names)
                    labels += [int(row["label"]) for row in rows]
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise DataError(f"{file} is not a parquet file with columns image: {{bytes}} and label: {error}") from None
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise DataError(f"{files[0].parent}: the images have {len(shapes)} different sizes; Tiny ImageNet's are 64x64")
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return stacked, torch.tensor(labels, dtype=torch.int64)


def _save(folder: Path, part: str, images: torch.Tensor, labels: torch.Tensor) -> int:
    np.save(folder / f"{part}-images.npy", images.numpy())
    np.save(folder / f"{part}-labels.npy", labels.numpy())
    return len(labels)
