"""Axes, legends and titles of long names, as the picture shows them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import lars_facts
from tests.charts.specs import data_sets, encodings
from tests.charts.test_names import BERT
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.charts import theme
from tvlars_probe.charts.curves import accuracy_curves
from tvlars_probe.charts.export import TITLE_ROOM, file_content, spec_of
from tvlars_probe.charts.layers import heat_map
from tvlars_probe.charts.names import pixels

RUN = "bert-large-uncased-whole-word-masking-{}-linear-warmup-batch32k-seed0-node17-attempt2"


def texts(chart: Any) -> list[str]:
    """Every text of the picture."""
    svg = file_content(chart, Path("chart.svg")).decode()
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def heat(names: list[str], steps: int = 4) -> Any:
    return heat_map("grad_norm", np.ones((steps, len(names))), np.arange(steps), tuple(names), lars_facts(tuple(names)))


def test_the_axis_of_a_picture_tells_long_names_apart() -> None:
    names = [name for name in BERT if ".layer.7." in name]
    shown = [text for text in texts(heat(names)) if text.endswith((".weight", ".bias"))]
    assert len(shown) == len({*shown}) == len(names) == 16
    assert all(pixels(text) <= theme.NAME_ROOM for text in shown)
    rows = next(data_sets(spec_of(heat(names))))
    assert {row["parameter"] for row in rows} == {*names}  # selections go by the whole name


def test_short_names_stand_as_they_are() -> None:
    axes = [
        definition["axis"] for channel, definition in encodings(spec_of(heat(["0.weight", "0.bias"]))) if channel == "y"
    ]
    assert [axis["labelLimit"] for axis in axes] == [0]
    assert "labelExpr" not in axes[0]


def test_a_row_of_several_layers_is_called_by_its_first_and_how_many_follow() -> None:
    names = [f"encoder.block.{i}.attention.projection.weight" for i in range(400)]
    chart = heat(names, steps=2)
    assert "400 layers in 200 rows" in spec_of(chart)["title"]["subtitle"]
    assert any(re.fullmatch(r".*\b0\.attention\.projection\.weight \+1", text) for text in texts(chart))


@pytest.mark.parametrize("name", ["constructor", "__proto__", 'a"]; alert(1) //', "</script>", "日本\u2028語"])
def test_no_name_is_anything_but_a_name_in_the_expression(name: str) -> None:
    names = [name, *("x" * 90 + letter for letter in "ab")]
    axis = theme.name_axis(names, 100.0).to_dict()
    narrow, wide, known = re.findall(r"\[\"(?:[^\"\\]|\\.)*\"(?:, \"(?:[^\"\\]|\\.)*\")*\]", axis["labelExpr"])
    assert json.loads(known) == names
    assert json.loads(wide)[0] == name
    assert len({*json.loads(narrow)}) == len({*json.loads(wide)}) == 3
    assert axis["labelExpr"].isascii()


def test_a_legend_tells_runs_with_long_names_apart() -> None:
    frame = pd.DataFrame({"epoch": [0, 1], "test_acc1": [10.0, 20.0]})
    names = [RUN.format(what) for what in ("lars", "tvlars", "sgd")]
    runs = [(RunFacts(name=name, optimizer="LARS", schedule="none"), frame) for name in names]
    shown = [text for text in texts(accuracy_curves(runs)) if text.endswith("attempt2") and text.startswith("…")]
    assert len({*shown}) == 3
    assert all(what in " ".join(shown) for what in ("…lars-", "tvlars", "sgd"))


def test_a_long_title_goes_on_in_the_next_line_with_every_letter() -> None:
    run = RunFacts(name=RUN.format("lars"), optimizer="LARS", schedule="none")
    spec = spec_of(accuracy_curves([(run, pd.DataFrame({"epoch": [0], "test_acc1": [10.0]}))]))
    whole = spec["title"]["text"]
    long = {**spec, "title": {"text": f"{whole}, {whole}", "subtitle": "y" * 300}}
    drawn = alt.Chart.from_dict({k: v for k, v in long.items() if k not in ("config", "description")})
    heading = json.loads(file_content(drawn, Path("chart.json")))["title"]
    assert " ".join(heading["text"]).replace("- ", "-") == f"{whole}, {whole}"
    assert "".join(heading["subtitle"]) == "y" * 300
    assert all(pixels(line, 14 * 1.1) <= TITLE_ROOM for line in heading["text"])
    assert "limit" not in theme.config()["title"]
