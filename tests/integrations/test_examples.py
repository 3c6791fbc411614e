"""The examples with real models run at a small size, and record what they say."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import tvlars_probe
from tests.test_examples import EXAMPLES, example

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"steps": 4, "batch": 4, "width": 16, "layers": 1, "length": 16}


@pytest.fixture(autouse=True)
def examples_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["example"])


def test_bert_with_lamb(tmp_path: Path) -> None:
    example("bert_lamb").train(tmp_path / "r", **SMALL)
    run = tvlars_probe.open_run(tmp_path / "r")
    layers, steps = run.layers(), run.steps()
    assert len(steps) == 4
    assert steps["loss"].between(3, 6).all()  # ln 97 = 4.57 for a guess
    assert run.manifest.groups[0]["optimizer"] == "LAMB"
    matrices = layers[layers.parameter.astype(str).str.endswith("dense.weight")]
    assert (matrices["trust_ratio"] != 1).all()
    # With the ratio's definition: min(‖w‖, 10) / ‖r + λw‖.
    expected = matrices["weight_norm"].clip(upper=10) / matrices["direction_norm"]
    np.testing.assert_allclose(matrices["trust_ratio"], expected, rtol=1e-5)


def test_gpt_with_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt = example("gpt_accelerate")
    monkeypatch.setattr(gpt.Lines, "__len__", lambda _: 16)  # enough for two updates of four: the text is read again
    gpt.train(tmp_path / "r", **SMALL, pieces=2)
    steps = tvlars_probe.open_run(tmp_path / "r").steps()
    assert steps["tokens"].tolist() == [8 * 15 * (step + 1) for step in range(4)]
    assert steps["loss"].between(3, 6).all()
    np.testing.assert_allclose(steps["grad_norm"], steps["grad_norm_before_clipping"] * steps["clip_scale"], rtol=1e-4)


def test_vit_with_lightning(tmp_path: Path) -> None:
    example("vit_lightning").train(tmp_path / "r", epochs=1, batch=500, width=16, layers=1, lr=1.0, warmup=1)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["samples"].tolist() == [500, 1000, 1497]
    assert run.steps()["lr"].tolist() == [0.5, 1.0, 1.0]
    assert run.epochs()["test_acc1"].between(0, 100).all()
