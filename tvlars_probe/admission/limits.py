"""The limits: what a file may cost. Each leaves room for models of 30,000 tensors, and stays below 1 GiB of memory."""

from __future__ import annotations

import os

MANIFEST_BYTES = 1 << 26
"""The most bytes of a manifest. One of a model of a thousand tensors has some 300,000."""

NOTE_BYTES = 1 << 16
"""The most bytes of what a writer notes in a parquet footer."""

GRID_BYTES = 1 << 16
"""The most bytes of a grid's TOML file. Those that come with the package have some 500."""

GRID_POINTS = 10_000
"""The most points of a grid. A minute passes until so many command lines are parsed."""

TABLE_BYTES = 1 << 26
"""The most bytes of a text file that lists labels."""

IDX_BYTES = 1 << 28
"""The most bytes of an idx file, unpacked. Fashion-MNIST's largest has 47 million."""

TEXT_DEPTH = 64
"""How deep JSON and TOML may nest. A manifest's entries nest some 8 deep."""

TEXT_ELEMENTS = 1 << 21
"""The most values of a JSON text. A tensor's entry in a manifest has some 15, and each takes up to 180 bytes."""

VALUE_DEPTH = 100
"""How deep the values of a state may nest. A checkpoint's nest some 8 deep."""

VALUE_ELEMENTS = 1 << 26
"""The most values of a state when what is shared is written out."""

PICKLE_BYTES = 1 << 26
"""The most bytes of the pickle in a checkpoint, which holds no tensor's numbers."""

PICKLE_OPCODES = 1 << 20
"""The most opcodes of that pickle, besides those of its tensors. Each makes an object of up to 400 bytes."""

TENSOR_OPCODES = 64
"""The most opcodes for each entry of the archive: a tensor takes some 40."""

ARCHIVE_DIRECTORY_BYTES = 1 << 25
"""The most bytes of the directory of a checkpoint's archive. A tensor takes some 80."""

FOOTER_BYTES = 1 << 22
"""The most bytes of a parquet footer. A part of four million rows has some 2 MiB; in memory it takes 170 times that."""

FOOTER_CHUNKS = 1 << 17
"""The most column chunks of a parquet file: its row groups times its columns."""

PART_ROWS = 1 << 23
"""The most rows that a part may claim; the writer's parts have at most some four million."""

PART_BYTES = 1 << 31
"""The most bytes that a part may claim, uncompressed."""

PAGE_BYTES = 1 << 25
"""The most bytes of one page of a part, unpacked: the writer's have one MiB, or a thousand names."""

PART_TEXT_BYTES = 1 << 29
"""The most bytes of a part's names, unpacked. With names of 100 bytes four million rows have 400 million."""

PAGES = 1 << 17
"""The most pages of a parquet file."""

IMAGES_BYTES = 1 << 34
"""The most bytes that a parquet file of images may claim, uncompressed."""

IMAGES_PAGE_BYTES = 1 << 30
"""The most bytes of one of its pages, unpacked."""

IMAGE_FILE_BYTES = 1 << 29
"""The most bytes of one encoded image."""

IMAGE_PIXELS = 89_478_485
"""The most pixels of one image, which is Pillow's limit."""

IMAGE_SCANS = 100
"""The most scans of a JPEG image, of which each goes over all its pixels. Encoders make some ten."""

CIFAR_BYTES = 1 << 28
"""The most bytes of a file of CIFAR: of all of them a checksum is taken. The largest has 170 million."""

DECODED_BYTES = 1 << 34
"""The most bytes of all decoded images of a data set, which memory holds together; half of the machine's, if less."""

SCALED_PIXELS = 1 << 26
"""The most pixels of an image that is scaled as a whole before its middle is taken."""

PIXELS_IN_THREAD = 1 << 22
"""The most pixels of an image that threads decode; a pixel takes 4 to 12 bytes. Larger ones come one at a time."""


def memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 1 << 33
