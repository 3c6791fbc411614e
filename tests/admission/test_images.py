"""Images whose few bytes unpack to far more than their pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tvlars_probe.admission import limits
from tvlars_probe.admission.images import FORMATS, refuse_costly_image


def look(content: bytes) -> tuple[int, ...]:
    """Let the image in, and decode it: the shape of its pixels."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        refuse_costly_image(content, opened)
        return np.asarray(opened.convert("RGB")).shape


def tiled(width: int, side: int) -> bytes:
    """A TIFF image of so many pixels in one tile of side² pixels."""
    data = zlib.compress(bytes(side * side))
    fields = [(256, width), (257, width), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 0),
              (325, len(data))]  # fmt: skip
    end = 8 + 2 + 12 * len(fields) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, end if tag == 324 else value) for tag, value in fields]
    return struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + b"".join(entries) + bytes(4) + data


def test_a_tile_far_larger_than_its_image_is_refused() -> None:
    for content in (tiled(8, 16), tiled(8, 2048)):
        assert look(content) == (8, 8, 3)
    with pytest.raises(ValueError, match="its tiles have 16,777,216 pixels, of 64 of the image"):
        look(tiled(8, 4096))


def test_a_jpeg_of_many_scans_is_refused() -> None:
    stream = io.BytesIO()
    Image.radial_gradient("L").save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    assert look(content) == (256, 256, 3)
    start = content.rindex(b"\xff\xda")
    last = content[start:-2]
    with pytest.raises(ValueError, match=r"it has [\d,]+ scans, of 100 that it can have"):
        look(content[:start] + last * limits.IMAGE_SCANS + content[-2:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "MPO"])
def test_the_formats_of_photographs_are_read(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 100, 50)).save(stream, kind)
    assert look(stream.getvalue()) == (7, 9, 3)
