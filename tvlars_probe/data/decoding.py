"""Decodes image files by several threads into one tensor.

Pillow tells a file's format by its bytes, whatever its name, and for some formats starts another program: of an EPS
file Ghostscript would run what a stranger has written. Only the formats of photographs are read.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from tvlars_probe.admission import limits
from tvlars_probe.admission.files import read_plain
from tvlars_probe.admission.images import FORMATS, refuse_costly_image
from tvlars_probe.errors import DataError, RefusedFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor


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
        height, width, channels = shape = decode(paths[0], side, str(paths[0])).shape
    refuse_large(shape, len(paths))
    # With the channels first at once: a copy of the whole in another order would double the memory.
    images = np.empty((len(paths), channels, height, width), dtype=np.uint8)

    def put(index: int, image: NDArray[np.uint8]) -> None:
        if image.shape != shape:
            raise DataError(
                f"the images differ in size: {paths[0]} has {width}x{height} pixels, {paths[index]} "
                f"{image.shape[1]}x{image.shape[0]}; bring them to one with --image-size"
            )
        images[index] = image.transpose(2, 0, 1)

    decode_each(paths, [*map(str, paths)], side, workers, put)
    return torch.from_numpy(images)


def decode_each(
    files: Sequence[Path] | Sequence[bytes],
    names: Sequence[str],
    side: int | None,
    workers: int,
    put: Callable[[int, NDArray[np.uint8]], None],
) -> None:
    """Decode images by several threads; large ones here, one at a time.

    Args:
        files: their paths or contents.
        names: what error messages call them.
        side: as for `decode_files`.
        workers: number of threads.
        put: called with each image's index and its pixels, by any of the threads.

    Raises:
        DataError: an image can't be decoded.
    """

    def attempt(index: int) -> bool:
        image = decode(files[index], side, names[index], most_pixels=limits.PIXELS_IN_THREAD)
        if image is not None:
            put(index, image)
        return image is not None

    with bombs_refused(), ThreadPoolExecutor(max(workers, 1)) as pool:
        # Taking each result raises a thread's error here.
        for index, is_done in enumerate(pool.map(attempt, range(len(files)))):
            if not is_done:
                # Not in the threads even one at a time: the system leaves to each of them the memory that it has used.
                put(index, decode(files[index], side, names[index]))


def refuse_large(shape: tuple[int, ...], count: int, remedy: str = "make them smaller with --image-size") -> None:
    """Refuse images that would take too much memory together: data sets are held in memory.

    Args:
        shape: (height, width, 3), of each of them.
        count: how many there are.
        remedy: what to do about it.

    Raises:
        DataError: they would.
    """
    most, needed = min(limits.DECODED_BYTES, limits.memory() // 2), math.prod(shape) * count
    if needed > most:
        raise DataError(
            f"{count:,} images of {shape[1]}x{shape[0]} take {needed / 2**30:.0f} GiB of memory (at most "
            f"{most / 2**30:.0f}): {remedy}"
        )


@contextlib.contextmanager
def bombs_refused() -> Iterator[None]:
    """Inside it, Pillow refuses images of more than its limit of pixels.

    By itself it only warns of an image up to twice the limit. The filter is the whole process's: threads that set it,
    each for itself, would put back what another one has set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@overload
def decode(file: Path | bytes, side: int | None, name: str) -> NDArray[np.uint8]: ...
@overload
def decode(file: Path | bytes, side: int | None, name: str, *, most_pixels: int) -> NDArray[np.uint8] | None: ...


def decode(
    file: Path | bytes, side: int | None, name: str, *, most_pixels: int | None = None
) -> NDArray[np.uint8] | None:
    """Decode one image into (height, width, 3) bytes. To be called inside `bombs_refused`.

    Args:
        file: its path or its content.
        side: as for `decode_files`.
        name: what an error message calls the image.
        most_pixels: an image of more is left alone, and None returned.

    Raises:
        DataError: the image can't be decoded.
    """
    try:
        content = file if isinstance(file, bytes) else read_plain(file, limits.IMAGE_FILE_BYTES)
        # Opening reads the header alone, which tells the size.
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            refuse_costly_image(content, opened)
            if most_pixels is not None and opened.width * opened.height > most_pixels:
                return None
            image = _eight_bits(opened)
            if image.mode != "RGB":
                image = image.convert("RGB")
                opened.close()  # of a large image two are as much as there is room for
            return np.asarray(image if side is None else _square(image, side), dtype=np.uint8)
    except RefusedFileError as error:
        raise DataError(f"{name} can't be decoded: {error.reason}") from None
    # Pillow's plugins raise SyntaxError for damaged files, and other errors, too.
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        reason = f"no image format of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} can't be decoded: {reason}") from None


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
    left, top = (width - side) // 2, (height - side) // 2
    if width * height > limits.SCALED_PIXELS:
        # Of an image of 1x2,000,000 the whole would be as wide as it is high: only the middle is scaled. Its pixels are
        # those of the whole but for rounding, and smaller images keep theirs to the bit.
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + side) * across, (top + side) * down)
        return image.resize((side, side), Image.Resampling.BICUBIC, box)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC) if image.size != (width, height) else image
    return scaled.crop((left, top, left + side, top + side))
