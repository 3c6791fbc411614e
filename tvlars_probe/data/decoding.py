"""Image files of any format that Pillow reads, decoded by several threads into one tensor."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from tvlars_probe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

_MOST_BYTES = 16 * 2**30


def decode_files(paths: Sequence[Path], side: int | None, workers: int) -> Tensor:
    """The images as (samples, 3, height, width) bytes.

    Args:
        paths: of the files.
        side: bring each to a square of this side: the shorter side is scaled to it, the middle is kept. None takes
            them as they are, and they must be of one size.
        workers: threads.

    Raises:
        DataError: a file can't be decoded, or the sizes differ; the message names the file.
    """
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

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for _ in pool.map(put, range(len(paths)), chunksize=64):
            pass
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def decode(file: Path | bytes, side: int | None, name: str) -> NDArray[np.uint8]:
    """One image as (height, width, 3) bytes; ``name`` is what an error calls it.

    Raises:
        DataError: it can't be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
                image = _eight_bits(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} can't be decoded: {reason}") from None
    return np.asarray(image if side is None else _square(image, side), dtype=np.uint8)


def _eight_bits(image: Any) -> Any:
    """Greyscale of 16 bits scaled to 8, which Pillow's own conversion clips instead; other wide types are refused."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, whose white isn't known: convert it to 8 bits")
    return image


def _square(image: Any, side: int) -> Any:
    shorter = min(image.size)
    width, height = (max(side, round(length * side / shorter)) for length in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC) if image.size != (width, height) else image
    left, top = (width - side) // 2, (height - side) // 2
    return scaled.crop((left, top, left + side, top + side))
