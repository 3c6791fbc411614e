"""Small image files: folders of classes, Tiny ImageNet's own layout, and the parquet files of its Hugging Face copy."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def picture(seed: int, width: int = 64, height: int | None = None) -> Image.Image:
    """A smooth random picture: JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height or width), Image.Resampling.BICUBIC)


def jpeg(seed: int, width: int = 64) -> bytes:
    stream = io.BytesIO()
    picture(seed, width).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_image_folder(root: Path, *, train: int = 6, test: int = 2, size: int = 16, test_name: str = "test") -> Path:
    """Classes cat and dog, as PNG."""
    for part, count in (("train", train), (test_name, test)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(count):
                path = root / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(100 * k + i, size).save(path)
    return root


def write_tiny_imagenet(root: Path, classes: int = 3, train: int = 4, val: int = 6) -> Path:
    """The layout of tiny-imagenet-200.zip."""
    home = root / "tiny-imagenet-200"
    names = [f"n{k:08d}" for k in range(classes)]
    for k, name in enumerate(names):
        folder = home / "train" / name / "images"
        folder.mkdir(parents=True)
        (home / "train" / name / f"{name}_boxes.txt").write_text("")
        for i in range(train):
            (folder / f"{name}_{i}.JPEG").write_bytes(jpeg(10 * k + i))
    (home / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(val):
        (home / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(1000 + i))
        lines.append(f"val_{i}.JPEG\t{names[i % classes]}\t0\t0\t10\t10\n")
    (home / "val" / "val_annotations.txt").write_text("".join(lines))
    (home / "wnids.txt").write_text("\n".join(reversed(names)))
    return home


def write_parquet(root: Path, classes: int = 3, train: int = 4, val: int = 6) -> Path:
    """The same images as `write_tiny_imagenet`, as the Hugging Face copy has them."""
    rows = {
        "train": [(jpeg(10 * k + i), k) for k in range(classes) for i in range(train)],
        "valid": [(jpeg(1000 + i), i % classes) for i in range(val)],
    }
    folder = root / "data"
    folder.mkdir(parents=True)
    for part, content in rows.items():
        images = [{"bytes": data, "path": None} for data, _ in content]
        table = pa.table(
            {
                "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "label": pa.array([label for _, label in content], pa.int64()),
            }
        )
        pq.write_table(table, folder / f"{part}-00000-of-00001-abc.parquet")
    return root
