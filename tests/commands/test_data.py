from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.data.idx import write_fashion_mnist
from tests.data.image_files import write_image_folder, write_parquet
from tvlars_probe.data.registry import DATASETS


def test_the_list_says_what_is_there_and_how_to_get_the_rest(cli: Any) -> None:
    done = cli("data", "list")
    assert done.code == 0
    for name, entry in DATASETS.items():
        assert f"{name}: {entry.about}" in done.out
    assert "1,437 + 360 images" in done.out
    assert "not there; to get it: train with --download" in done.out


def test_the_list_counts_what_stands_in_a_folder(cli: Any) -> None:
    write_fashion_mnist(Path("here"), train=40, test=20)
    write_image_folder(Path("here"))
    rows = {row["name"]: row for row in json.loads(cli("data", "list", "--data-dir", "here", "--json").out)}
    assert (rows["fashion-mnist"]["train"], rows["fashion-mnist"]["test"]) == (40, 20)
    assert (rows["imagefolder"]["train"], rows["imagefolder"]["where"]) == (12, "here")
    assert not rows["cifar10"]["there"]


def test_an_import_is_trained_on(cli: Any) -> None:
    write_parquet(Path("hub"))
    done = cli("data", "import-tiny-imagenet", "hub")
    assert done.out == "12 + 6 images in data/tiny-imagenet-200/packed\n"
    assert "tinyimagenet" in cli("data", "list").out
    trained = cli("train", "--ds", "tinyimagenet", "--bs", 6, "--epochs", 1, "--dv", "cpu", "--threads", 1, "--lr", 0.1)
    assert trained.code == 0, trained.err
    again = cli("data", "import-tiny-imagenet", "hub")
    assert again.code == 2
    assert "is there already" in again.err


def test_every_data_set_of_files_trains_in_both_modes(cli: Any) -> None:
    write_image_folder(Path("mine"))
    for mode in ("clf", "bt"):
        done = cli("train", "--ds", "imagefolder", "--data-dir", "mine", "--bs", 6, "--epochs", 1, "--cl_epochs", 1,
                   "--projector", "8-8", "--mode", mode, "--dv", "cpu", "--threads", 1, "--lr", 0.1)  # fmt: skip
        assert done.code == 0, done.err
