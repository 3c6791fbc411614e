"""Images and label files that no data set has: refused by name, or read one at a time."""

from __future__ import annotations

import gzip
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.image_files import jpeg, picture, write_image_folder, write_parquet, write_tiny_imagenet
from tvlars_probe.admission import limits
from tvlars_probe.data import decoding, tiny_imagenet
from tvlars_probe.data.fashion_mnist import read_idx
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import DataError, UserError

if TYPE_CHECKING:
    from pathlib import Path

FORM = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ONE: Any = {"bytes": jpeg(1), "path": None}
IMAGES = pa.array([ONE, ONE], FORM)
LABELS = pa.array([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (pa.array([None, ONE], FORM), LABELS, "rows without the bytes of an image"),
        (pa.array([{"bytes": None, "path": "x"}, ONE], FORM), LABELS, "rows without the bytes of an image"),
        (pa.array([b"x", b"y"]), LABELS, "rows without the bytes of an image"),
        (IMAGES, pa.array(["cat", "dog"]), "labels of type string"),
        (IMAGES, pa.array([0.0, float("nan")]), "labels of type double"),
        (IMAGES, pa.array([0.0, 0.5]), "labels of type double"),
        (IMAGES, pa.array([0, None]), "or rows without one"),
        (IMAGES, pa.array([0, 1 << 63], pa.uint64()), "not in range"),
        (IMAGES, pa.array([0, (1 << 63) - 1]), "the training labels aren't 0, 1, ..."),
        (pa.array([], FORM), pa.array([], pa.int64()), "holds 0 images"),
    ],
    ids=["null image", "null bytes", "no struct", "text", "NaN", "fraction", "null", "2^63", "2^63 - 1", "empty"],
)
def test_an_import_of_what_isnt_images_with_labels_is_refused(
    tmp_path: Path, images: Any, labels: Any, message: str
) -> None:
    write_parquet(tmp_path / "hub")
    (train,) = (tmp_path / "hub").rglob("train-*.parquet")
    pq.write_table(pa.table({"image": images, "label": labels}), train)
    with pytest.raises(DataError, match=message):
        tiny_imagenet.import_into(tmp_path / "mine", tmp_path / "hub")
    assert not (tmp_path / "mine").exists()


def test_an_import_of_a_fifo_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "hub")
    (train,) = (tmp_path / "hub").rglob("train-*.parquet")
    train.unlink()
    os.mkfifo(train)
    with pytest.raises(DataError, match="it is no plain file"):
        tiny_imagenet.import_into(tmp_path / "mine", tmp_path / "hub")


def test_an_image_beside_which_the_others_dont_fit_is_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "hub")
    monkeypatch.setattr(limits, "memory", lambda: 2 * 12 * 64 * 64 * 3 - 2)
    with pytest.raises(DataError, match="12 images of 64x64 take 0 GiB of memory"):
        tiny_imagenet.import_into(tmp_path / "mine", tmp_path / "hub")


@pytest.mark.parametrize("place", ["val_annotations.txt", "images/val_0.JPEG"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "bytes"])
def test_files_of_tiny_imagenet_that_are_none_are_named(tmp_path: Path, place: str, kind: str) -> None:
    path = write_tiny_imagenet(tmp_path) / "val" / place
    path.unlink()
    if kind == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    else:
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(DataError, match=path.name):
        DataConfig(name="tinyimagenet", folder=str(tmp_path)).load()


@pytest.mark.parametrize("harm", ["fifo", "text", "labels of floats", "no dimension", "another length"])
def test_packed_arrays_that_are_none_are_named(tmp_path: Path, harm: str) -> None:
    write_parquet(tmp_path / "hub")
    tiny_imagenet.import_into(tmp_path, tmp_path / "hub")
    path = tmp_path / "packed" / "train-labels.npy"
    path.unlink()
    made: dict[str, Any] = {"labels of floats": [0.0] * 12, "no dimension": 3, "another length": [0]}
    if harm in made:
        np.save(path, np.array(made[harm]))
    else:
        os.mkfifo(path) if harm == "fifo" else path.write_text("\x93NUMPY")
    with pytest.raises(DataError, match="packed"):
        DataConfig(name="tinyimagenet", folder=str(tmp_path)).load()


def test_of_a_thin_image_only_the_middle_is_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To within rounding it is the middle of the whole, scaled."""
    picture(0, 5, 3000).save(tmp_path / "thin.png")
    whole = decoding.decode(tmp_path / "thin.png", 8, "x")
    monkeypatch.setattr(limits, "SCALED_PIXELS", 1000)
    middle = decoding.decode(tmp_path / "thin.png", 8, "x")
    assert whole.shape == middle.shape == (8, 8, 3)
    assert np.abs(whole.astype(int) - middle).max() <= 2
    Image.new("L", (1, 2_000_000), 77).save(tmp_path / "thinner.png")
    assert (decoding.decode(tmp_path / "thinner.png", 64, "x") == 77).all()


def test_large_images_are_decoded_outside_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "cat" / "2.png")
    seen = dict[int, set[str]]()
    whole = decoding._eight_bits

    def noted(image: Any) -> Any:
        seen.setdefault(image.width, set()).add(threading.current_thread().name)
        return whole(image)

    monkeypatch.setattr(decoding, "_eight_bits", noted)
    monkeypatch.setattr(limits, "PIXELS_IN_THREAD", 16 * 16)
    images = decoding.decode_files(sorted((tmp_path / "train").rglob("*.png")), 16, 3)
    assert seen[32] == {threading.main_thread().name}
    assert any("ThreadPool" in name for name in seen[16])
    assert [int(one.max()) == 0 for one in images] == [False] * 2 + [True] + [False] * 9


def test_of_a_packed_idx_file_no_more_is_unpacked_than_it_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 1, 0, 1, 0, 0)) + bytes(1 << 16)))
    assert len(read_idx(path, 1)) == 1 << 16
    monkeypatch.setattr(limits, "IDX_BYTES", 1 << 15)
    with pytest.raises(DataError, match="it claims the shape"):
        read_idx(path, 1)


def test_no_other_program_is_started_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS, whatever its file is called, to Ghostscript, which would run it."""
    paths = sorted((write_image_folder(tmp_path) / "train" / "cat").iterdir())
    paths[0].write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n{} loop\n%%EOF\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(DataError, match=r"0.png can't be decoded: no image format of JPEG, PNG"):
        decoding.decode_files(paths, None, 1)


def test_packed_arrays_that_claim_more_than_memory_holds_are_refused(tmp_path: Path) -> None:
    """Nothing of them stands on the disk."""
    write_parquet(tmp_path / "hub")
    tiny_imagenet.import_into(tmp_path, tmp_path / "hub")
    count = 1 << 30
    for name, shape in (("images", (count, 3, 8, 8)), ("labels", (count,))):
        path = tmp_path / "packed" / f"train-{name}.npy"
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        os.truncate(path, path.stat().st_size + int(np.prod(shape)))
    with pytest.raises(DataError, match="1,073,741,824 images of 8x8 take 192 GiB of memory"):
        DataConfig(name="tinyimagenet", folder=str(tmp_path)).load()


def test_a_deep_header_of_a_packed_array_is_damage(tmp_path: Path) -> None:
    """Python's parser answers it with a MemoryError."""
    write_parquet(tmp_path / "hub")
    tiny_imagenet.import_into(tmp_path, tmp_path / "hub")
    header = b"-" * 9000 + b"1\n"
    path = tmp_path / "packed" / "train-images.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"train-images.npy can't be read"):
        DataConfig(name="tinyimagenet", folder=str(tmp_path)).load()


def test_no_checksum_is_taken_of_a_file_that_is_too_large(tmp_path: Path) -> None:
    """A terabyte of nothing takes no room on the disk, and a checksum an hour."""
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    (home / "data_batch_1").touch()
    os.truncate(home / "data_batch_1", 1 << 40)
    with pytest.raises(DataError, match=r"data_batch_1 is refused: it has 1,099,511,627,776 bytes"):
        DataConfig(name="cifar10", folder=str(tmp_path), download=False).load()


def test_no_image_is_scaled_to_more_pixels_than_one_can_have() -> None:
    assert DataConfig(name="imagefolder", folder="x", image_size=9459)
    with pytest.raises(UserError, match=r"--image-size 9460 is too large \(allowed: 1 to 9459\)"):
        DataConfig(name="imagefolder", folder="x", image_size=9460)
