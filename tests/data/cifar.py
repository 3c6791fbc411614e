"""Small CIFAR files in the real format: pickled batches, with torchvision's checksums set to theirs."""

from __future__ import annotations

import hashlib
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
from torchvision import datasets

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 20, test: int = 30) -> Path:
    """Five training batches and a test batch of random images below ``root``."""
    home, rng = root / "cifar-10-batches-py", np.random.default_rng(0)
    names = [f"data_batch_{k}" for k in range(1, 6)]
    sums = [[name, dump(home / name, batch(rng, per_batch, "labels", 10))] for name in names]
    test_sum = ["test_batch", dump(home / "test_batch", batch(rng, test, "labels", 10))]
    meta = dump(home / "batches.meta", {"label_names": [f"class {k}" for k in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [test_sum])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", meta)
    return home


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch, train: int = 40, test: int = 20) -> Path:
    """One training file and a test file."""
    home, rng = root / "cifar-100-python", np.random.default_rng(1)
    for name, count, attribute in (("train", train, "train_list"), ("test", test, "test_list")):
        checksum = dump(home / name, batch(rng, count, "fine_labels", 100))
        monkeypatch.setattr(datasets.CIFAR100, attribute, [[name, checksum]])
    meta = dump(home / "meta", {"fine_label_names": [f"class {k}" for k in range(100)]})
    monkeypatch.setitem(datasets.CIFAR100.meta, "md5", meta)
    return home


def batch(rng: np.random.Generator, count: int, labels: str, classes: int) -> dict[str, Any]:
    images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": images, labels: [k % classes for k in range(count)], "batch_label": "x", "filenames": []}


def dump(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()
