"""Tiny ImageNet: 100,000 + 10,000 photographs of 64×64, 200 classes; its validation part is the test data here.

It is read from the folder of the original archive, whose JPEG files are decoded, or from the arrays that `import_into`
has written into ``packed/`` in that folder, which need no decoding.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.admission import limits
from tvlars_probe.admission.files import below, read_plain, refuse_special
from tvlars_probe.admission.parquet import largest_piece, open_arrow, read_footer
from tvlars_probe.data.folders import removed_on_failure
from tvlars_probe.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from tvlars_probe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from tvlars_probe.data.images import ImageData, TensorImages
    from tvlars_probe.data.registry import Request

FOLDER_NAME = "tiny-imagenet-200"
USUAL_PLACE = Path("data") / FOLDER_NAME
PACKED = "packed"

_AT_ONCE = 64
"""The most encoded images that are in memory at once."""

_ENCODED_BYTES = 1 << 29
"""Bytes of encoded images that are in memory at once: fewer images where a piece of the file holds larger ones."""

_SPLITS = {"train": ("train",), "test": ("val", "test")}
"""How the names of each part's parquet files begin, in order of preference: the original test split has no labels."""


def load(request: Request) -> ImageData:
    """Read both parts.

    Raises:
        DataError: the data is not there, or damaged.
    """
    from tvlars_probe.data.images import ImageData

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
        (path, index)
        for index, name in enumerate(classes)
        for path in sorted(path for path in below(home / "train" / name) if path.suffix == ".JPEG")
    ]
    test = [*_annotated(home / "val", classes)]
    if not train or not test:
        raise DataError(f"{home} holds no images: expected train/<class>/images/*.JPEG and val/images/*.JPEG")
    # Both parts are decoded at once, which checks that they are of one size.
    import torch

    from tvlars_probe.data.decoding import decode_files

    images = decode_files([path for path, _ in (*train, *test)], None, workers)
    labels = torch.tensor([label for _, label in (*train, *test)], dtype=torch.int64)
    return _part(images[: len(train)], labels[: len(train)]), _part(images[len(train) :], labels[len(train) :])


def _annotated(folder: Path, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """The image files of the validation part with their classes, which a table lists."""
    table = folder / "val_annotations.txt"
    try:
        lines = read_plain(table, limits.TABLE_BYTES).decode().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(f"{table} can't be read ({reason}): get Tiny ImageNet again") from None
    known = {name: index for index, name in enumerate(classes)}
    for number, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        label = known.get(rest.partition("\t")[0])
        if label is None:
            raise DataError(f"{table}, line {number}: {line[:60]!r} names no class of the training data")
        yield folder / "images" / name, label


def _load_packed(packed: Path) -> tuple[TensorImages, TensorImages]:
    import torch

    from tvlars_probe.data.decoding import refuse_large

    parts = []
    for part in _SPLITS:
        images, labels = _array(packed, f"{part}-images"), _array(packed, f"{part}-labels")
        is_fit = images.dtype == np.uint8 and images.ndim == 4 and labels.ndim == 1 and labels.dtype.kind in "iu"
        if not is_fit or len(labels) != len(images) or not images.size:
            raise DataError(f"{packed} is damaged: {part} has images {images.shape} and labels {labels.shape}")
        # A file may claim far more than it takes on the disk.
        _, channels, height, width = images.shape
        refuse_large((height, width, channels), len(images), "Tiny ImageNet's are 64x64; import it again")
        parts.append(_part(torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels, dtype=np.int64))))
    _check_labels(packed, parts[0].labels, parts[1].labels)
    return parts[0], parts[1]


def _array(packed: Path, name: str) -> NDArray[np.uint8]:
    path = packed / f"{name}.npy"
    try:
        refuse_special(path)
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    # NumPy parses the header as Python, and what may go wrong there has no end: a deep one is a MemoryError. The array
    # itself takes no memory yet.
    except Exception as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DataError(f"{path} can't be read ({reason}): import Tiny ImageNet again") from None
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise DataError(f"{path} holds no array: import Tiny ImageNet again")
    return array


def _part(images: torch.Tensor, labels: torch.Tensor) -> TensorImages:
    from tvlars_probe.data.images import TensorImages

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
    there = [path for path in below(source) if path.suffix == ".parquet"]
    groups = (sorted(path for path in there if path.name.startswith(name)) for name in names)
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
    import torch

    from tvlars_probe.data.decoding import bombs_refused, decode, decode_each, refuse_large

    rows = sum(_rows(file) for file in files)
    images = np.empty((0, 3, 0, 0), np.uint8)
    labels = np.empty(rows, np.int64)

    done = 0

    def put(index: int, image: NDArray[np.uint8]) -> None:
        if image.shape[:2] != images.shape[2:]:
            raise DataError(f"{names[index]} differs in size from the first image; Tiny ImageNet's are 64x64")
        images[done + index] = image.transpose(2, 0, 1)

    for file in files:
        for encoded, label in _batches(file):
            names = [f"{file}, image {done + index}" for index in range(len(encoded))]
            if not done:
                with bombs_refused():
                    shape = decode(encoded[0], None, names[0]).shape
                refuse_large(shape, rows, "Tiny ImageNet's are 64x64")
                images = np.empty((rows, 3, *shape[:2]), np.uint8)
            if done + len(encoded) > rows:
                raise DataError(f"{files[0].parent} holds more images than the {rows:,} that its files claim")
            decode_each(encoded, names, None, workers, put)
            labels[done : done + len(encoded)] = label
            done += len(encoded)
    if not done or done != rows:
        raise DataError(f"{files[0].parent} holds {done:,} images of {rows:,} that its files claim")
    return torch.from_numpy(images), torch.from_numpy(labels)


def _rows(file: Path) -> int:
    """Number of rows of a parquet file of images.

    Raises:
        DataError: it can't be read, or costs more than it may.
    """
    import pyarrow as pa

    try:
        most = limits.IMAGES_BYTES
        return read_footer(file, size=most, page=limits.IMAGES_PAGE_BYTES, texts=most).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} is no parquet file of images: {getattr(error, 'reason', None) or error}") from None


def _batches(file: Path) -> Iterator[tuple[list[bytes], NDArray[np.int64]]]:
    """Encoded images and their labels, some at a time: they are never all in memory.

    Raises:
        DataError: the file doesn't hold them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_arrow(file) as source:
            opened = pq.ParquetFile(source)
            # A dictionary of one image may stand for it in every row.
            at_once = min(max(_ENCODED_BYTES // max(largest_piece(opened.metadata), 1), 1), _AT_ONCE)
            for batch in opened.iter_batches(at_once, columns=["image", "label"]):
                image, label = batch.column("image"), batch.column("label")
                encoded: list[Any] = image.field("bytes").to_pylist() if isinstance(image, pa.StructArray) else []
                if image.null_count or not all(isinstance(one, bytes) for one in encoded) or not encoded:
                    raise DataError(f"{file} has rows without the bytes of an image")
                if label.null_count or not pa.types.is_integer(label.type):
                    raise DataError(f"{file} has labels of type {label.type}, or rows without one: they are integers")
                # Numbers beyond int64 are refused by the cast.
                yield encoded, label.cast(pa.int64()).to_numpy()
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is not a parquet file with columns image: {{bytes}} and label: {error}") from None


def _save(folder: Path, part: str, images: torch.Tensor, labels: torch.Tensor) -> int:
    np.save(folder / f"{part}-images.npy", images.numpy())
    np.save(folder / f"{part}-labels.npy", labels.numpy())
    return len(labels)
