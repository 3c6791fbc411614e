"""Decodes image files of any format that Pillow reads, by several threads, into one tensor."""

from __future__ import annotations

import contextlib
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from tvlars_probe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

_MOST_BYTES = 16 * 2**30
"""Most memory that decoded images may take: data sets are held in memory."""


def decode_files(paths: Sequence[Path], side: int | None, workers: int) -> Tensor:
    """Decode images of one size into (samples, 3, height, width) bytes.

    Args:
        paths: the files.
        side: each image is brought to a square of this side: its shorter side is scaled to it, and the middle is kept.
            None leaves the images as they are; then they must be of one size.
        workers: number of threads.

    Raises:
        DataError: a file can't be decoded or the sizes differ, and the message names the file; or the images would take
            too much memory.
    """
    # The first image tells the size of all: what would take too much memory is refused before the rest is decoded.
    with bombs_refused():
        first = decode(paths[0], side, str(paths[0]))
    if first.nbytes * len(paths) > _MOST_BYTES:
        raise DataError(
            f"{len(paths):,} images of {first.shape[1]}x{first.shape[0]} take {first.nbytes * len(paths) / 2**30:.0f} "
            f"GiB of memory (at most {_MOST_BYTES // 2**30}): make them smaller with --image-size"
        )
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def put(index: int) -> None:
        image = decode(paths[index], side, str(paths[index]))
        if image.shape != first.shape:
            raise DataError(
                f"the images differ in size: {paths[0]} has {first.shape[1]}x{first.shape[0]} pixels, {paths[index]} "
                f"{image.shape[1]}x{image.shape[0]}; bring them to one with --image-size"
            )
        images[index] = image

    with bombs_refused(), ThreadPoolExecutor(max(workers, 1)) as pool:
        for _ in pool.map(put, range(len(paths))):
            pass  # taking each result raises a thread's error here
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


@contextlib.contextmanager
def bombs_refused() -> Iterator[None]:
    """Inside it, Pillow refuses images of more than its limit of pixels.

    By itself it only warns of an image up to twice the limit. The filter is the whole process's: threads that set it,
    each for itself, would put back what another one has set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(file: Path | bytes, side: int | None, name: str) -> NDArray[np.uint8]:
    """Decode one image into (height, width, 3) bytes. To be called inside `bombs_refused`.

    Args:
        file: its path or its content.
        side: as for `decode_files`.
        name: what an error message calls the image.

    Raises:
        DataError: the image can't be decoded.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            image = _eight_bits(opened).convert("RGB")
    # Pillow's plugins raise SyntaxError for damaged files, among others.
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} can't be decoded: {reason}") from None
    return np.asarray(image if side is None else _square(image, side), dtype=np.uint8)


def _eight_bits(image: Any) -> Any:
    """An image of 8 bits a channel: 16-bit greyscale is scaled, and wider types are refused.

    Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
    """
    if image.mode.startswith("I;16"):
        # 65535 = 257·255: white stays white.
        return Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, whose white isn't known: convert it to 8 bits")
    return image


def _square(image: Any, side: int) -> Any:
    """Scale the shorter side to ``side``, and keep the middle of the longer one."""
    shorter = min(image.size)
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC) if image.size != (width, height) else image
    left, top = (width - side) // 2, (height - side) // 2
    return scaled.crop((left, top, left + side, top + side))
