"""CIFAR, Tiny ImageNet and image folders, from small files in their real formats."""

from __future__ import annotations

import os
import pickle
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.cifar import write_cifar10, write_cifar100
from tests.data.image_files import picture, write_image_folder, write_parquet, write_tiny_imagenet
from tvlars_probe.data import tiny_imagenet
from tvlars_probe.data.decoding import decode_files
from tvlars_probe.data.image_folder import channel_moments
from tvlars_probe.data.registry import DATASETS, DataConfig
from tvlars_probe.errors import DataError, UserError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("inside", [False, True], ids=["torchvision's root", "the folder itself"])
def test_cifar10_is_what_its_batches_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    home = write_cifar10(tmp_path, monkeypatch)
    data = DataConfig(name="cifar10", folder=str(home if inside else tmp_path), download=False).load()
    assert (len(data.train), len(data.test), data.num_classes) == (100, 30, 10)
    raw = pickle.loads((home / "data_batch_3").read_bytes())
    assert torch.equal(data.train.images[40:60].flatten(1), torch.from_numpy(raw["data"]))
    assert data.train.labels[40:60].tolist() == raw["labels"]
    assert data.train.images.shape[1:] == (3, 32, 32)


def test_cifar100_takes_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    data = DataConfig(name="cifar100", folder=str(tmp_path), download=False).load()
    assert (len(data.train), len(data.test), data.num_classes) == (40, 20, 100)
    assert data.train.labels.tolist() == list(range(40))


def test_a_pickle_with_another_checksum_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = write_cifar10(tmp_path, monkeypatch)

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    (home / "data_batch_2").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(DataError, match="cifar-10-batches-py is incomplete or damaged; fetch it with --download"):
        DataConfig(name="cifar10", folder=str(tmp_path), download=False).load()
    assert not (tmp_path / "pwned").exists()


def test_missing_cifar_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-100-python is not there; fetch it with --download, or give .*--data-"):
        DataConfig(name="cifar100", folder=str(tmp_path), download=False).load()


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(DataError, match="fetching it failed: no route to host"):
        DataConfig(name="cifar10", folder=str(tmp_path / "new" / "place")).load()
    assert not (tmp_path / "new").exists()


def test_tiny_imagenet_is_read_from_its_own_layout(tmp_path: Path) -> None:
    home = write_tiny_imagenet(tmp_path)
    data = DataConfig(name="tinyimagenet", folder=str(tmp_path)).load()
    assert data.train.labels.tolist() == [k for k in range(3) for _ in range(4)]
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    with Image.open(home / "train" / "n00000001" / "images" / "n00000001_2.JPEG") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(data.train.images[6].permute(1, 2, 0).numpy(), expected)
    assert DATASETS["tinyimagenet"].loader.count(home) == (12, 6)


def test_parquet_files_are_imported_into_what_the_loader_reads(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    write_parquet(tmp_path / "hub")
    assert tiny_imagenet.import_into(tmp_path / "mine", tmp_path / "hub") == (12, 6)
    folder, imported = (DataConfig(name="tinyimagenet", folder=str(tmp_path / name)).load() for name in (".", "mine"))
    for part in ("train", "test"):
        assert getattr(folder, part).fingerprint() == getattr(imported, part).fingerprint()
    assert DATASETS["tinyimagenet"].loader.count(tmp_path / "mine") == (12, 6)


def test_the_original_folder_can_be_imported_too(tmp_path: Path) -> None:
    home = write_tiny_imagenet(tmp_path)
    assert tiny_imagenet.import_into(home, home) == (12, 6)
    before = DataConfig(name="tinyimagenet", folder=str(home)).load()
    assert (home / "packed").is_dir()
    assert before.num_classes == 3


@pytest.mark.parametrize("damage", ["no parquet", "other columns", "no picture", "no label", "there already"])
def test_an_import_that_fails_leaves_nothing(tmp_path: Path, damage: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "hub")
    (train,) = (tmp_path / "hub").rglob("train-*.parquet")
    if damage == "no parquet":
        train.unlink()
    elif damage == "other columns":
        pq.write_table(pa.table({"x": [1]}), train)
    elif damage == "no picture":
        pq.write_table(pa.table({"image": [{"bytes": b"GIF?", "path": None}], "label": [0]}), train)
    elif damage == "no label":
        (valid,) = (tmp_path / "hub").rglob("valid-*.parquet")
        unlabelled = pa.array([-1] * 6, pa.int64())
        pq.write_table(pq.read_table(valid).set_column(1, "label", unlabelled), valid)
    else:
        (tmp_path / "mine" / "packed").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    expected = {
        "no parquet": "holds neither", "other columns": "is not a parquet file with columns image",
        "no picture": "image 0 can't be decoded: no image format",
        "no label": "a test image has the label -1", "there already": "is there already",
    }[damage]  # fmt: skip
    with pytest.raises(DataError, match=expected):
        tiny_imagenet.import_into(tmp_path / "mine", tmp_path / "hub")
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_tiny_imagenet_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip .*import-tiny-imagenet.*--data-dir"):
        DataConfig(name="tinyimagenet", folder=str(tmp_path)).load()


def test_a_table_that_names_unknown_classes_is_damaged(tmp_path: Path) -> None:
    home = write_tiny_imagenet(tmp_path)
    (home / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn123\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt, line 1: .* names no class"):
        DataConfig(name="tinyimagenet", folder=str(tmp_path)).load()


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_an_image_folder(tmp_path: Path, test_name: str) -> None:
    write_image_folder(tmp_path, test_name=test_name)
    data = DataConfig(name="imagefolder", folder=str(tmp_path)).load()
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    assert data.describe()["image"] == [3, 16, 16]
    expected = np.asarray(picture(102, 16))
    assert np.array_equal(data.train.images[8].permute(1, 2, 0).numpy(), expected)
    x, _ = data.train.batch(torch.arange(12), torch.float64)
    assert x.mean((0, 2, 3)).abs().max() < 1e-12
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-12
    assert DATASETS["imagefolder"].loader.count(tmp_path) == (12, 4)


def test_images_of_different_sizes_are_brought_to_one(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    picture(5, 40, 20).save(tmp_path / "train" / "dog" / "wide.png")
    with pytest.raises(DataError, match=r"differ in size: .*16x16 pixels, .*wide\.png 40x20; .*--image-size"):
        DataConfig(name="imagefolder", folder=str(tmp_path)).load()
    data = DataConfig(name="imagefolder", folder=str(tmp_path), image_size=10).load()
    assert data.train.images.shape == (13, 3, 10, 10)
    expected = picture(5, 40, 20).resize((20, 10), Image.Resampling.BICUBIC).crop((5, 0, 15, 10))
    assert np.array_equal(data.train.images[-1].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "train/cat/1.png").write_bytes(b"not an image"), r"1\.png can't be decoded"),
        (lambda p: (p / "test/horse").mkdir(), "horse is no class of the training data"),
        (lambda p: [f.unlink() for f in (p / "test").rglob("*.png")], "test holds no images"),
        (lambda p: (p / "train").rename(p / "trains"), "is no imagefolder: it needs train/<class>/"),
        (lambda p: (p / "train/empty").mkdir(), "empty holds no images: remove the folder"),
        (lambda p: (p / "train/dog").rename(p / ".dog"), "1 class folder.*needs two or more"),
        (
            lambda p: Image.fromarray(np.ones((16, 16), np.int32)).save(p / "train/cat/9.tif"),
            r"9\.tif .* mode I, whose",
        ),
    ],
    ids=["damaged", "unknown class", "empty", "no train", "empty class", "one class", "32 bits"],
)
def test_what_is_wrong_with_an_image_folder_is_said(tmp_path: Path, spoil: object, message: str) -> None:
    write_image_folder(tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        DataConfig(name="imagefolder", folder=str(tmp_path)).load()


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert DataConfig(name="imagefolder", folder=str(tmp_path)).load().num_classes == 2


def test_greyscale_of_16_bits_is_scaled_to_8(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    wide = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(wide).save(tmp_path / "train" / "dog" / "wide.png")
    data = DataConfig(name="imagefolder", folder=str(tmp_path)).load()
    assert np.array_equal(data.train.images[-1, 1].numpy(), wide // 257)


def test_an_image_folder_needs_its_folder() -> None:
    with pytest.raises(DataError, match="give it with --data-dir"):
        DataConfig(name="imagefolder").load()


def test_image_size_is_for_image_folders() -> None:
    with pytest.raises(UserError, match="--image-size is for --ds imagefolder"):
        DataConfig(name="digits", image_size=8)


def test_moments_are_those_of_the_pixels() -> None:
    images = torch.randint(0, 256, (7, 3, 5, 6), dtype=torch.uint8)
    mean, std = channel_moments(images)
    scaled = images.double() / 255
    assert np.allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(std, scaled.std((0, 2, 3), correction=0), rtol=1e-12)


def test_an_image_of_too_many_pixels_is_refused_by_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow only warns of an image up to twice its limit; the filter that refuses it is gone afterwards."""
    paths = [tmp_path / f"{k}.png" for k in range(40)]
    for k, path in enumerate(paths):
        Image.new("RGB", (8, 8) if k < 39 else (10, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    before = list(warnings.filters)
    with pytest.raises(DataError, match=r"39\.png can't be decoded: .*decompression bomb"):
        decode_files(paths, 8, 8)
    assert warnings.filters == before
