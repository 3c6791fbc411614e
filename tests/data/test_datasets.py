from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.data.idx import idx_bytes, write_fashion_mnist
from tvlars_probe.data import fashion_mnist
from tvlars_probe.data.registry import DATASETS, DataConfig
from tvlars_probe.errors import DataError, UserError

if TYPE_CHECKING:
    from pathlib import Path


def test_digits_are_split_once_and_for_all() -> None:
    data = DataConfig().load()
    again = DataConfig().load()
    assert (len(data.train), len(data.test), data.num_classes) == (1437, 360, 10)
    assert data.train.fingerprint() == again.train.fingerprint()
    shares = [torch.bincount(part.labels) / len(part) for part in (data.train, data.test)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    assert data.describe()["image"] == [1, 8, 8]


def test_batches_are_normalised() -> None:
    train = DataConfig().load().train
    x, y = train.batch(torch.arange(len(train)), torch.float64)
    assert x.dtype == torch.float64
    assert x.shape == (1437, 1, 8, 8)
    assert abs(x.mean().item()) < 1e-3
    assert x.std().item() == pytest.approx(1.0, abs=1e-3)
    assert torch.equal(y, train.labels)


def test_held_out_samples_are_the_same_for_every_seed_and_in_no_other_part() -> None:
    whole, data = DataConfig().load(), DataConfig(val=0.1).load()
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (1293, 144, 360)
    assert DataConfig(val=0.1).load().val.fingerprint() == data.val.fingerprint()  # type: ignore[union-attr]
    rows = [tuple(image.flatten().tolist()) for part in (data.train, data.val) for image in part.images]
    assert sorted(rows) == sorted(tuple(image.flatten().tolist()) for image in whole.train.images)
    assert torch.bincount(data.val.labels).min() >= 13


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_a_folder(tmp_path: Path, zipped: bool, below: str) -> None:
    write_fashion_mnist(tmp_path / below, zipped=zipped)
    data = DataConfig(name="fashion-mnist", folder=str(tmp_path)).load()
    assert (len(data.train), len(data.test)) == (40, 20)
    assert data.train.labels.tolist() == [i % 10 for i in range(40)]
    assert data.train.images.shape == (40, 1, 28, 28)


def test_pixels_are_read_as_written(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 5, 7))
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx_bytes(images)))
    assert (fashion_mnist.read_idx(tmp_path / "x.gz", 3) == images).all()


def test_missing_data_says_what_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        DataConfig(name="fashion-mnist", folder=str(tmp_path)).load()
    message = str(caught.value)
    wanted = ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "dataset-fashion-mnist", "--data-dir", "--download")
    for part in (f"{tmp_path}, {tmp_path}/fashion-mnist, {tmp_path}/raw, {tmp_path}/FashionMNIST/raw.", *wanted):
        assert part in message


def test_one_missing_file_is_missing_data(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=rf"in {tmp_path} \(lacks t10k-labels-idx1-ubyte\), {tmp_path}/fashion-mnist, "):
        DataConfig(name="fashion-mnist", folder=str(tmp_path)).load()


def corrupt(content: bytes, how: str) -> bytes:
    whole = gzip.decompress(content)
    return {
        "truncated gzip": content[: len(content) // 2],
        "not gzip": b"hello",
        "empty": b"",
        "flipped bits": content[:40] + bytes(b ^ 255 for b in content[40:60]) + content[60:],
        "truncated inside": gzip.compress(whole[:-10]),
        "other magic": gzip.compress(b"\x01" + whole[1:]),
        "giant claim": gzip.compress(whole[:4] + b"\xff" * 12 + whole[16:]),
        "short header": gzip.compress(whole[:6]),
    }[how]


@pytest.mark.parametrize(
    "how",
    ["truncated gzip", "not gzip", "empty", "flipped bits", "truncated inside", "other magic", "giant claim",
     "short header"],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, how: str) -> None:
    path = write_fashion_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(corrupt(path.read_bytes(), how))
    with pytest.raises(DataError, match=path.name):
        DataConfig(name="fashion-mnist", folder=str(tmp_path)).load()


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(39))))
    with pytest.raises(DataError, match="not Fashion-MNIST"):
        DataConfig(name="fashion-mnist", folder=str(tmp_path)).load()


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.exists(), reason="Debian's dataset-fashion-mnist isn't installed")
def test_the_real_fashion_mnist() -> None:
    data = DataConfig(name="fashion-mnist").load()
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    x, _ = data.train.batch(torch.arange(60_000))
    assert abs(x.mean().item()) < 1e-3
    assert x.std().item() == pytest.approx(1.0, abs=1e-3)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mnist"}, r"unknown data set 'mnist' \(known: digits, fashion-mnist"),
        ({"val": 1.0}, r"--val 1 is not a share"),
        ({"val": -0.1}, "--val -0.1"),
        ({"limit": 0}, "--limit 0 leaves no samples"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**settings)


def test_too_little_to_hold_out_is_said() -> None:
    with pytest.raises(DataError, match=r"--val 0\.001 can't be held out"):
        DataConfig(val=0.001).load()


def test_a_limit_takes_a_fixed_sample() -> None:
    data = DataConfig(limit=50).load()
    assert (len(data.train), len(data.test)) == (50, 50)
    assert data.train.fingerprint() == DataConfig(limit=50).load().train.fingerprint()


def test_the_registry_lists_the_data_sets() -> None:
    assert {"digits", "fashion-mnist"} <= {*DATASETS}
