"""What an image's few bytes may unpack to, beside its pixels."""

from __future__ import annotations

import math
from typing import Any

from tvlars_probe.admission import limits

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""The formats that are read, as Pillow calls them."""

_TILE, _OFFSETS = (322, 323), (273, 324)
"""Tags of TIFF: width and length of its tiles; where its strips or tiles stand."""


def refuse_costly_image(content: bytes, opened: Any) -> None:
    """Refuse an image that takes far more time or memory than its pixels.

    Args:
        content: its file's content.
        opened: Pillow's image of it, of which no pixel has been decoded.

    Raises:
        ValueError: a JPEG goes over its pixels in too many scans, or the tiles of a TIFF are larger than the image.
    """
    tags: Any = getattr(opened, "tag_v2", {})
    # A tile is decoded as a whole, though it may reach beyond the image.
    tile = math.prod(int(tags.get(tag, 0)) for tag in _TILE)
    if tile > max(4 * opened.width * opened.height, limits.PIXELS_IN_THREAD):
        raise ValueError(f"its tiles have {tile:,} pixels, of {opened.width * opened.height:,} of the image")
    if opened.format in ("JPEG", "MPO", "TIFF"):
        pieces = max((len(tags.get(tag, ())) for tag in _OFFSETS), default=0)
        # Within a scan no 0xff is followed by this byte. A TIFF holds a JPEG for each of its strips or tiles.
        scans = content.count(b"\xff\xda")
        if (opened.format != "TIFF" or tags.get(259) == 7) and scans > limits.IMAGE_SCANS * max(pieces, 1):
            raise ValueError(f"it has {scans:,} scans, of {limits.IMAGE_SCANS} that it can have")
