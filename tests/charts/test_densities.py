"""A spectral density shows eigenvalues where they are, and a gap where there are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.test_minimizer import rows
from tests.charts.specs import data_sets
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.minimizer import SPECTRUM_COLUMNS, Minimizer, analyse_minimizer
from tvlars_probe.charts.blocks import layer_blocks
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.sharpness import sharpness_curves, spectral_density
from tvlars_probe.errors import NothingToShowError

if TYPE_CHECKING:
    from collections.abc import Mapping

ABOUT = {"phase": "train", "scope": "all", "split": "train", "bn_mode": "train", "error": 0.0}


def density(
    eigenvalues: Mapping[float, float], sigma: float, *, operator: str = "hessian", step: int = 9
) -> pd.DataFrame:
    """Rows of ``spectrum``: Gaussians of these masses at these eigenvalues, to five standard deviations beyond."""
    grid = np.linspace(min(eigenvalues) - 5 * sigma, max(eigenvalues) + 5 * sigma, 1001)
    heights = [
        w * np.exp(-0.5 * ((grid - x) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)) for x, w in eigenvalues.items()
    ]
    return pd.DataFrame({"step": step, "operator": operator, "grid": grid, "density": sum(heights), **ABOUT})


def measured(*frames: pd.DataFrame, name: str = "run", status: str = "completed", spectrum: Any = None) -> Minimizer:
    """The analysis of rows of ``curvature``, and of rows of ``spectrum``."""
    curvature = pd.concat(frames) if frames else rows("hessian", [], steps=[])
    densities = pd.DataFrame(columns=list(SPECTRUM_COLUMNS)) if spectrum is None else spectrum
    return analyse_minimizer(curvature, densities, RunFacts(name=name, optimizer="LARS", status=status))


def drawn(*results: Minimizer) -> tuple[pd.DataFrame, dict[str, Any]]:
    spec = spec_of(spectral_density(results))
    return pd.DataFrame(next(data_sets(spec))), spec


def test_no_line_crosses_the_gap_between_eigenvalues_and_every_one_of_them_is_drawn() -> None:
    spectrum = density({0.0: 1 - 3e-9, 4.0: 1e-9, 10.8: 2e-9}, 0.02)
    shown, spec = drawn(measured(spectrum=spectrum))
    ends = shown.groupby("piece")["grid"].agg(["min", "max"]).to_numpy()
    assert ends == pytest.approx(np.array([[-0.1, 0.17], [3.9, 4.1], [10.7, 10.9]]), abs=0.03)
    assert [detail["field"] for detail in spec["encoding"]["detail"]] == ["run", "piece"]
    assert spec["title"]["text"].endswith("reaches to 10.9")
    assert shown["grid"].max() == spectrum["grid"].max() == pytest.approx(10.9)


def test_the_axis_ends_at_a_hundredth_of_the_lowest_hump() -> None:
    shown, _ = drawn(measured(spectrum=density({0.0: 0.999, 9.0: 0.001}, 0.05)))
    lowest = 0.001 / (0.05 * np.sqrt(2 * np.pi))
    assert shown["height"].min() == pytest.approx(lowest / 100, rel=1e-2)
    assert shown["density"].min() < shown["height"].min()  # the tails themselves are in the tooltip


def test_a_narrow_spectrum_hides_no_eigenvalue_of_another_run() -> None:
    wide, narrow = density({0.0: 0.9999, 50.0: 1e-4}, 0.2), density({0.0: 0.5, 1e-9: 0.5}, 1e-12)
    shown, _ = drawn(measured(name="wide", spectrum=wide), measured(name="narrow", spectrum=narrow))
    assert shown.loc[shown["run"] == "wide", "grid"].max() == pytest.approx(51)


def test_a_title_names_where_the_spectrum_of_each_panel_ends() -> None:
    both = pd.concat([density({0.0: 0.9, 8.6: 0.1}, 0.01), density({0.0: 0.9, 10.7: 0.1}, 0.02, operator="relative")])
    shown, spec = drawn(measured(spectrum=both))
    assert spec["title"]["text"].endswith("reaches to 8.65 (the Hessian) and 10.8 (the relative Hessian)")
    assert shown.groupby("operator")["grid"].max().round(2).to_dict() == {"hessian": 8.65, "relative": 10.8}


def test_of_two_measurements_of_a_step_the_last_is_drawn_alone() -> None:
    first = density({0.0: 0.5, 7.0: 0.5}, 0.1).assign(measurement_id="a", created_at=pd.Timestamp("2026-01-01"))
    second = density({0.0: 0.5, 3.0: 0.5}, 0.1).assign(measurement_id="b", created_at=pd.Timestamp("2026-01-02"))
    shown, _ = drawn(measured(spectrum=pd.concat([first, second, density({0.0: 1.0}, 1.0, step=3)])))
    assert {*shown["step"]} == {9}
    assert {*shown["grid"].round(4)} <= {*second["grid"].round(4)}


def test_a_run_that_diverged_does_not_squeeze_the_others() -> None:
    calm, astray = density({0.0: 0.9, 5.0: 0.1}, 0.1), density({0.0: 0.9, 5e9: 0.1}, 1e6)
    shown, spec = drawn(
        measured(name="calm", spectrum=calm), measured(name="astray", status="diverged", spectrum=astray)
    )
    assert shown["grid"].max() < 25
    assert "astray goes on to 5e+09 (hessian)" in spec["title"]["subtitle"]
    alone, _ = drawn(measured(name="astray", status="diverged", spectrum=astray))
    assert alone["grid"].max() > 5e9


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_without_a_density_above_zero_there_is_no_chart(value: float) -> None:
    with pytest.raises(NothingToShowError, match="tvlars-probe sharpness --density"):
        drawn(measured(spectrum=density({0.0: 1.0}, 1.0).assign(density=value)))


def block(scope: str, value: float, *, operator: str = "hessian", kind: str = "layer", step: int = 9) -> pd.DataFrame:
    return rows(operator, [value], steps=[step], scope=scope, scope_kind=kind)


def test_blocks_are_of_one_operator_and_one_kind() -> None:
    of_two = [
        block("a", 5, operator="effective"),
        block("a", 3, operator="relative"),
        block("b", 2, operator="relative"),
    ]
    spec = spec_of(layer_blocks(measured(*of_two)))
    assert [row["value"] for row in next(data_sets(spec))] == [3.0, 2.0]
    assert spec["title"]["text"] == "The sharpest block of the relative Hessian is a, 3 at step 9"
    mixed = [block("a.weight", 9, kind="tensor"), block("a", 5), block("b", np.nan), block("c", 7, step=3)]
    spec = spec_of(layer_blocks(measured(*mixed)))
    assert [row["parameter"] for row in next(data_sets(spec))] == ["a"]
    with pytest.raises(NothingToShowError, match="--per-layer"):
        layer_blocks(measured(block("b", np.nan)))


def test_a_sharpness_of_zero_or_none_ends_the_line_and_is_marked() -> None:
    curve = rows("hessian", [1, 2, 0, 3, np.nan, 4, -5, 6], steps=range(0, 80, 10))
    spec = spec_of(sharpness_curves([measured(curve)]))
    shown = pd.DataFrame(next(data_sets(spec)))
    assert shown.dropna(subset="value").groupby("piece")["told"].agg(list).tolist() == [[1, 2], [3], [4], [6]]
    assert shown.loc[shown["edge"] == "below", "told"].tolist() == [0, -5]
    assert "▼ zero or below the axis" in spec["title"]["subtitle"]


def test_the_sharpness_of_a_run_that_diverged_flattens_no_other() -> None:
    calm, astray = (rows("hessian", values, steps=[0, 10, 20]) for values in ([1, 5, 9], [1, 1e12, 1e25]))
    both = [measured(calm, name="calm"), measured(astray, name="astray", status="diverged")]
    shown = pd.DataFrame(next(data_sets(spec_of(sharpness_curves(both)))))
    assert shown["value"].max() == 9
    assert shown.loc[shown["edge"] == "above", "told"].tolist() == [1e12, 1e25]
    with pytest.raises(NothingToShowError, match="above zero"):
        sharpness_curves([measured(rows("hessian", [0, np.nan, -1], steps=[0, 10, 20]))])
