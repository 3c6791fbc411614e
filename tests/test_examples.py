"""What the examples claim."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "momentum"), [(0.1, 0.0), (0.2, 0.0), (0.3, 0.9)])
def test_gradient_descent_rises_to_the_edge_of_stability(tmp_path: Path, lr: float, momentum: float) -> None:
    edge = example("edge_of_stability")
    frame = edge.descend(tmp_path / "run", lr, momentum)
    late = frame[frame.step >= edge.STEPS // 2].share
    assert len(late) >= edge.STEPS // 2 // edge.EVERY
    assert abs(late.median() - 1) < 0.1
    assert late.min() > 0.85
