from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.landscape import analyse_landscape

ALPHA = np.linspace(-1, 1, 41)


def rows(alpha: Any, loss: Any, **further: Any) -> pd.DataFrame:
    told = {"measurement_id": "m", "created_at": pd.Timestamp(0), "step": 1, "run2": None, "beta": np.nan,
            "acc1": 50.0, "split": "train", "bn_mode": "interpolated", "seed": 0}  # fmt: skip
    return pd.DataFrame({"alpha": alpha, "loss": loss}).assign(**{**told, **further})


def test_the_width_of_a_parabola_is_that_of_its_level_set() -> None:
    result = analyse_landscape(rows(ALPHA, 4 * ALPHA**2 + 0.3), RunFacts(name="x"), rise=1.0)
    assert result.verdict["width"] == pytest.approx(1.0, abs=2e-3)  # 4 a² < 1 for |a| < ½
    assert analyse_landscape(rows(ALPHA, 0.1 * ALPHA**2), RunFacts(name="x")).verdict.answer == "wider than the slice"


def test_a_barrier_is_measured_above_the_line_through_both_ends() -> None:
    line = np.linspace(0, 1, 21)
    bump = 1.0 + line + 0.8 * np.sin(np.pi * line)
    result = analyse_landscape(rows(line, bump, run2="other"), RunFacts(name="x"))
    assert result.verdict.answer == "two basins"
    assert result.verdict["barrier"] == pytest.approx(0.8)
    assert result.verdict["at"] == pytest.approx(0.5)
    assert analyse_landscape(rows(line, 1.0 + line, run2="other"), RunFacts(name="x")).verdict.answer == "one basin"


def test_the_newest_slice_is_read_and_a_plane_holds_its_line() -> None:
    old = rows(ALPHA, ALPHA**2)
    grid = [(a, b) for a in (-1.0, 0.0, 1.0) for b in (-0.5, 0.0, 0.5)]
    alpha, beta = (np.array(column) for column in zip(*grid, strict=True))
    new = rows(alpha, alpha**2 + beta**2, beta=beta, measurement_id="n", created_at=pd.Timestamp(1))
    result = analyse_landscape(pd.concat([new, old]), RunFacts(name="x"))
    assert len(result.plane) == 9
    assert result.line["alpha"].tolist() == [-1, 0, 1]
    assert result.spacing == (1.0, 0.5)
