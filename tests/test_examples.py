"""What the examples claim."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tvlars_probe import open_run

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "momentum"), [(0.2, 0.0), (0.3, 0.9)])
def test_gradient_descent_rises_to_the_edge_of_stability(tmp_path: Path, lr: float, momentum: float) -> None:
    edge = example("edge_of_stability")
    frame = edge.descend(tmp_path / "run", lr, momentum, steps=1500)
    late = frame[frame.step >= 1000].share
    assert len(late) >= 500 // edge.EVERY
    assert abs(late.median() - 1) < 0.1
    assert late.min() > 0.85


@pytest.mark.slow
def test_the_demo_ends_with_a_page_of_its_three_runs_sharpness_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = example("large_batch_digits")
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "SHARPNESS", dataclasses.replace(demo.SHARPNESS, samples=64))
    page = demo.write_report(16.0, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "report.html"
    for method in demo.METHODS:
        run = open_run(tmp_path / f"{method.name}-peak16-seed0-sharpness")
        assert f"<td>{run.name}</td>" in text
        assert {*run.curvature(["operator"]).operator} == {"hessian", "relative", "effective", "adaptive"}
    assert text.count("Is it trapped in a sharp minimum?") >= 3
    assert "not measured" not in text
