"""Every kind of chart, drawn from real runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd
import pytest

from tests.charts.specs import data_sets, encodings
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.of_runs import minimizer_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.charts import theme
from tvlars_probe.charts.binning import MOST_CELLS, MOST_ROWS
from tvlars_probe.charts.comparisons import _with_interval
from tvlars_probe.charts.export import file_content, spec_of
from tvlars_probe.charts.kinds import KINDS, draw, lacking, left_out, remarks
from tvlars_probe.charts.sharpness import sharpness_curves, spectral_density
from tvlars_probe.errors import TraceError, UserError
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable


def source_of(run: Path) -> Source:
    return Source(open_run(run))


def chart(name: str, runs: list[Path]) -> Any:
    kind = KINDS[name]
    return draw(name, [source_of(run) for run in (runs if kind.several and kind.needs != "spectrum" else runs[:1])])


DRAWN = [name for name in KINDS if name != "time-to-target"]
"""Those that the runs of this module have data for; the other one takes a sweep over batches."""


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_survives_json_holds_few_rows_and_becomes_a_picture(name: str, measured: list[Path]) -> None:
    drawn = chart(name, measured)
    spec = spec_of(drawn)
    again = json.loads(json.dumps(spec, allow_nan=False))
    assert again == spec
    assert alt.Chart.from_dict({k: v for k, v in again.items() if k != "config"}).to_dict()["$schema"] == alt.SCHEMA_URL
    rows = list(data_sets(spec))
    assert rows
    assert max(map(len, rows)) <= (MOST_CELLS if name in HEAT else MOST_ROWS)
    assert any(map(len, rows))
    picture = png(drawn)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert 600 < width < 2400
    assert 150 < height < 2400


HEAT = {
    "trust-ratio", "lnr", "grad-norm", "relative-update", "update-rms", "spectral-norm", "update-spectral-norm",
    "landscape-map", "noise-layers",
}  # fmt: skip


def png(drawn: Any) -> bytes:
    return file_content(drawn, Path("chart.png"))


@pytest.mark.parametrize("name", DRAWN)
def test_titles_say_what_is_seen_and_axes_what_is_measured(name: str, measured: list[Path]) -> None:
    spec = spec_of(chart(name, measured))
    assert len(spec["title"]["text"]) > 10
    assert len(spec["title"]["subtitle"]) > 5
    for channel, definition in encodings(spec):
        if channel in ("x", "y") and definition["type"] == "quantitative":
            shown = definition.get("title", definition["field"])
            assert shown is None or "_" not in shown, f"{name}: {channel} is called {shown}"


@pytest.mark.parametrize("name", [name for name in DRAWN if KINDS[name].several and name != "batch-size"])
def test_an_optimizer_has_its_one_colour(name: str, measured: list[Path]) -> None:
    scales = [
        definition["scale"]
        for channel, definition in encodings(spec_of(chart(name, measured)))
        if channel == "color" and definition["field"] in ("optimizer", "setting", "line")
    ]
    assert scales
    for scale in scales:
        # A setting's name begins with its optimizer.
        optimizers = [label.partition(",")[0] for label in scale["domain"]]
        assert scale["range"] == [theme.OPTIMIZER_COLOURS[optimizer] for optimizer in optimizers]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.several])
def test_a_kind_for_one_run_refuses_two(name: str, measured: list[Path]) -> None:
    with pytest.raises(UserError, match=f"chart {name} shows one run, 2 were given"):
        draw(name, [source_of(run) for run in measured[:2]])


def test_what_a_run_has_no_data_for_is_refused_with_the_remedy(trained: Callable[..., Path]) -> None:
    run = source_of(trained("lars"))
    assert lacking("sharpness", run) is not None
    assert lacking("trust-ratio", run) is None
    with pytest.raises(TraceError, match=r"--sharpness-every, record\(probes=.*, or tvlars-probe sharpness"):
        draw("sharpness", [run])
    with pytest.raises(TraceError, match="tvlars-probe landscape"):
        draw("landscape-map", [run])
    with pytest.raises(UserError, match="unknown kind of chart 'pie'"):
        draw("pie", [run])


def test_bn_modes_are_never_joined_in_one_chart(measured: list[Path]) -> None:
    """The first run was measured in two: train on the way, eval after it."""
    run = source_of(measured[0])
    assert {*run.curvature(["bn_mode"]).bn_mode} == {"train", "eval"}
    for name in ("sharpness", "blocks"):
        spec = spec_of(draw(name, [run]))
        assert sum(mode in spec["title"]["subtitle"] for mode in ("mode train", "mode eval")) == 1
    drawn = [row for rows in data_sets(spec_of(draw("sharpness", [run]))) for row in rows]
    assert (
        len({row["step"] for row in drawn})
        == run.curvature(["step", "bn_mode"]).query("bn_mode == 'train'")["step"].nunique()
    )


def test_runs_of_another_bn_mode_are_left_out_by_name(measured: list[Path]) -> None:
    result = minimizer_of(source_of(measured[0]))
    other = dataclasses.replace(result, bn_mode="eval", facts=dataclasses.replace(result.facts, name="odd"))
    subtitle = spec_of(sharpness_curves([result, other]))["title"]["subtitle"]
    assert subtitle.endswith("BatchNorm mode train; left out, as measured in another mode: odd")
    assert "left out" not in spec_of(sharpness_curves([result]))["title"]["subtitle"]


@pytest.mark.parametrize("operators", [("relative",), ("effective",), ("hessian", "relative")])
def test_a_density_of_any_operator_is_drawn_each_in_a_panel(measured: list[Path], operators: tuple[str, ...]) -> None:
    result = minimizer_of(source_of(measured[0]))
    spectrum = pd.concat([result.spectrum.assign(operator=operator) for operator in operators])
    spec = spec_of(spectral_density([dataclasses.replace(result, spectrum=spectrum)]))
    rows = next(data_sets(spec))
    assert [*dict.fromkeys(row["operator"] for row in rows)] == [*operators]
    assert ("facet" in spec) == (len(operators) > 1)
    assert operators[0] == "hessian" or operators[0] in spec["title"]["text"]


@pytest.mark.slow
def test_sharpness_of_many_runs_fits_the_chart(measured: list[Path]) -> None:
    result = minimizer_of(source_of(measured[0]))
    many = [dataclasses.replace(result, facts=RunFacts(name=f"run{i}", optimizer="LARS")) for i in range(1_700)]
    assert len(next(data_sets(spec_of(sharpness_curves(many))))) <= MOST_ROWS


@pytest.mark.parametrize(("name", "counted"), [("accuracy", 1), ("comparison", 2), ("learning-rates", 2)])
def test_runs_without_an_epoch_spoil_no_chart_of_the_others(
    name: str, counted: int, trained: Callable[..., Path], tmp_path: Path
) -> None:
    good, bad = trained("lars"), tmp_path / "bad"
    shutil.copytree(good, bad)
    shutil.rmtree(bad / "trace" / "epochs")
    runs = [source_of(bad), source_of(good)]
    ((run, reason),) = left_out(name, runs)
    assert (run.trace.name, reason) == ("bad", "no epoch is finished yet")
    rows = next(data_sets(spec_of(draw(name, runs))))
    assert "bad" not in {row.get("run") for row in rows}
    if counted > 1:
        assert f"{counted} runs" in spec_of(draw(name, runs))["title"]["subtitle"]
    with pytest.raises(TraceError, match="no epoch is finished yet"):
        draw(name, runs[:1])


@pytest.mark.parametrize("name", ["comparison", "learning-rates"])
def test_intervals_of_accuracies_stay_within_what_an_accuracy_can_be(name: str, trained: Callable[..., Path]) -> None:
    runs = [source_of(trained("lars", seed=seed)) for seed in (0, 1)]
    rows = next(data_sets(spec_of(draw(name, runs))))
    assert rows
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 100 for row in rows)
    (bar,) = _with_interval(pd.DataFrame({"mean": [90.0], "half_width": [30.0]}), "test_acc1").to_dict("records")
    assert (bar["low"], bar["high"]) == (60, 100)


def test_runs_that_are_left_out_are_named_in_one_line_for_each_reason(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [tmp_path / f"run{k}" for k in range(5)]
    for run in runs:
        shutil.copytree(trained("lars"), run)
    (one,) = remarks("sharpness", [source_of(runs[0])])
    assert one.startswith(f"{runs[0]} is left out: no sharpness is on record")
    (all_,) = remarks("sharpness", [source_of(run) for run in runs])
    assert all_.startswith(
        f"5 runs are left out ({runs[0]}, {runs[1]}, {runs[2]} and 2 more): no sharpness is on record"
    )


@pytest.mark.parametrize("name", ["comparison", "learning-rates"])
def test_one_run_is_one(name: str, measured: list[Path]) -> None:
    assert spec_of(draw(name, [source_of(measured[0])]))["title"]["subtitle"].startswith("1 run;")


def test_the_documentation_shows_every_kind_with_the_command_that_made_it() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "guides" / "charts.md").read_text(encoding="utf-8")
    for name in KINDS:
        picture, command = text.index(f"(../images/{name}.png)"), text.index(f"`tvlars-probe chart {name} ")
        assert picture < command
        assert f"-o {name}.png`" in text[command:].splitlines()[0]
        assert (docs / "images" / f"{name}.png").exists()
    assert sum(path.stat().st_size for path in (docs / "images").iterdir()) < 2_000_000


def test_a_value_by_itself_stands_at_its_own_tick(trained: Callable[..., Path]) -> None:
    run = source_of(trained("lars"))
    accuracy = float(run.epochs(["test_acc1"])["test_acc1"].iloc[-1])
    for name in ("comparison", "learning-rates"):
        assert f">{accuracy:.4g}</text>" in file_content(draw(name, [run]), Path("chart.svg")).decode()
