"""Shortened names differ, show what tells them apart, and fit where that is possible."""

from __future__ import annotations

import random
import re

import pytest

from tvlars_probe.charts.names import MOST_NAMES, pixels, shortened

BLOCKS = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
BERT = [f"bert.encoder.layer.{i}.{part}.{kind}" for i in range(12) for part in BLOCKS for kind in ("weight", "bias")]


@pytest.mark.parametrize(("width", "widest"), [(240, 240), (180, 200), (110, 200)])  # 200: what four words take
def test_the_parameters_of_bert_have_a_label_each(width: int, widest: int) -> None:
    labels = shortened(BERT, width, pixels)
    assert len({*labels.values()}) == len(BERT) == 192
    for name, label in labels.items():
        assert label.endswith(name.rpartition(".")[2])
        assert re.fullmatch(".+".join(map(re.escape, label.split("…"))), name)
    assert max(map(pixels, labels.values())) <= widest


def test_the_number_of_the_layer_stays_although_it_stands_in_the_middle() -> None:
    names = [f"bert.encoder.layer.{i}.attention.output.dense.weight" for i in range(12)]
    for i, label in enumerate(shortened(names, 150, pixels).values()):
        assert re.search(rf"(?<!\d){i}\.", label)
        assert label.endswith(".weight")


def test_names_that_differ_in_front_only_keep_their_fronts() -> None:
    end = ".module.backbone.stage.conv.bn.weight"
    labels = shortened([f"{side}_encoder{end}" for side in ("student", "teacher", "ema")], 30, len)
    for side, label in zip(("student", "teacher", "ema"), labels.values(), strict=True):
        assert side in label
        assert len(label) <= 30


def test_a_name_that_is_the_end_of_another_is_shown_from_its_beginning() -> None:
    inner = "attention.output.dense.projection.weight"
    labels = shortened([inner, f"decoder.{inner}", f"encoder.{inner}"], 26, len)
    assert labels[inner].startswith("attention")
    assert len({*labels.values()}) == 3
    assert "decoder" in labels[f"decoder.{inner}"]


def test_a_run_keeps_what_tells_it_from_the_others() -> None:
    runs = [f"bert-large-{o}-linear-warmup-batch32k-seed{s}-node17-attempt2" for o in ("lars", "sgd") for s in (0, 1)]
    for run, label in shortened(runs, 32, len).items():
        _, _, optimizer, *_, seed, _, _ = run.split("-")
        assert optimizer in label
        assert f"{seed[-1]}-" in label


def test_a_name_that_fits_is_its_own_label_and_no_other_looks_like_it() -> None:
    names = ["…c.weight", "aaaaaaaa.bbbbbbbbb.c.weight", "dddddddd.bbbbbbbbb.c.weight"]
    labels = shortened(names, 10, len)
    assert labels["…c.weight"] == "…c.weight"
    assert len({*labels.values()}) == 3


def test_labels_of_any_names_differ() -> None:
    rng = random.Random(0)
    for _ in range(600):
        letters = rng.choice(["ab.", "abc._-1", "a.", "…a. ", "日本.x"])
        names = {"".join(rng.choices(letters, k=rng.randint(0, 40))) for _ in range(rng.randint(1, 12))}
        width = rng.choice([3, 6, 10, 20])
        labels = shortened(names, width, len)
        assert {*labels} == names
        assert len({*labels.values()}) == len(names)
        assert all(labels[name] == name for name in names if len(name) <= width)
        assert all(len(labels[name]) <= len(name) for name in names)


def test_a_word_without_separators_is_cut_in_front() -> None:
    label = shortened(["x" * 80 + "end"], 30, len)["x" * 80 + "end"]
    assert label.startswith("…")
    assert label.endswith("xend")
    assert len(label) <= 30


def test_widths_are_of_letters_of_their_size() -> None:
    assert pixels("abc", 22) == 2 * pixels("abc", 11)
    assert pixels("il.") < pixels("abc") < pixels("日本語") == 33
    assert pixels("") == 0


def test_so_many_names_that_comparing_them_takes_long_are_their_own_labels() -> None:
    names = [f"encoder.layers.{number}.attention.projection.weight" for number in range(MOST_NAMES + 1)]
    assert shortened(names, 10, len) == {name: name for name in names}
