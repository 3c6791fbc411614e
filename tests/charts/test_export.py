"""One chart, every form."""

from __future__ import annotations

import io
import json
from pathlib import Path

import altair as alt
import pytest
from PIL import Image

from tests.charts.specs import data_sets
from tvlars_probe.charts.export import DARK, WRITERS, file_content, script_text, spec_of
from tvlars_probe.errors import UserError

HOSTILE = "</script><b>&"


@pytest.fixture
def chart() -> alt.Chart:
    data = alt.InlineData(values=[{"a": 1, "b": 2, "c": HOSTILE}, {"a": 2, "b": 1, "c": "plain"}])
    return (
        alt.Chart(data, title=alt.TitleParams(HOSTILE, subtitle="x"))
        .mark_point()
        .encode(x="a:Q", y="b:Q", tooltip="c:N")
    )


@pytest.mark.parametrize(("suffix", "starts"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF"), ("json", b"{"),
                                               ("html", b"<!doctype html>")])  # fmt: skip
def test_the_suffix_chooses_the_form_whatever_its_case(chart: alt.Chart, suffix: str, starts: bytes) -> None:
    assert file_content(chart, Path(f"chart.{suffix}")).startswith(starts)
    assert file_content(chart, Path(f"chart.{suffix.upper()}")).startswith(starts)


def test_json_is_the_specification_of_the_chart(chart: alt.Chart) -> None:
    spec = json.loads(file_content(chart, Path("chart.json")))
    assert next(data_sets(spec))[1] == {"a": 2, "b": 1, "c": "plain"}
    assert spec["$schema"] == alt.SCHEMA_URL


def test_html_holds_its_scripts_and_no_text_of_the_data_ends_one(chart: alt.Chart) -> None:
    page = file_content(chart, Path("chart.html")).decode()
    assert page.count("</script>") == page.count("<script>") == 2
    assert 'src="' not in page.split("<script>")[0]
    assert "<title>&lt;/script&gt;&lt;b&gt;&amp;</title>" in page


def test_text_in_a_script_survives() -> None:
    text = script_text({"a": HOSTILE + "\u2028"})
    assert "<" not in text
    assert json.loads(text) == {"a": HOSTILE + "\u2028"}


def test_a_screen_reader_is_told_the_title(chart: alt.Chart) -> None:
    spec = json.loads(file_content(chart, Path("chart.json")))
    assert spec["description"] == f"{HOSTILE}. x"


@pytest.mark.parametrize("name", ["chart.gif", "chart"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(chart: alt.Chart, name: str) -> None:
    with pytest.raises(UserError, match=r"suffix of .*\.html"):
        file_content(chart, Path(name))
    assert {*WRITERS} == {"html", "png", "svg", "pdf", "json"}


def test_a_dark_chart_is_drawn_in_light_ink_on_a_dark_ground(chart: alt.Chart) -> None:
    image = Image.open(io.BytesIO(file_content(chart, Path("c.png"), DARK))).convert("L")
    light = Image.open(io.BytesIO(file_content(chart, Path("c.png")))).convert("L")
    assert image.size == light.size
    assert image.getpixel((2, 2)) < 40 < 215 < light.getpixel((2, 2))
    (_, letters), (dark_letters, _) = image.getextrema(), light.getextrema()
    assert dark_letters < 60 < 200 < letters
    with pytest.raises(UserError, match="leave out --dark"):
        file_content(chart, Path("c.html"), DARK)


@pytest.mark.parametrize("suffix", WRITERS)
def test_text_that_cannot_be_encoded_is_spelt_out(suffix: str) -> None:
    """vl-convert would abort the process over it."""
    data = alt.InlineData(values=[{"a": 1, "c": "caf\udce9"}])
    drawn = alt.Chart(data, title="\ud800").mark_point().encode(x="a:Q", color="c:N")
    content = file_content(drawn, Path(f"x.{suffix}"))
    if suffix in ("html", "json", "svg"):
        assert "udce9" in content.decode()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_control_characters_are_spelt_out_where_xml_has_none(suffix: str) -> None:
    """vl-convert ends the process over them, which no test would outlive: it is handed none."""
    data = alt.InlineData(values=[{"a": 1, "c": "w\x00\x1b[31m\ufffe\t"}])
    spec = spec_of(alt.Chart(data, title="t\x0b").mark_point().encode(x="a:Q", y="c:N"))
    assert not {*"\x00\x1b\ufffe\x0b"} & {*str([*data_sets(spec)]), *spec["title"]}
    assert next(data_sets(spec))[0]["c"] == "w\\x00\\x1b[31m\\ufffe\t"
    made = file_content(alt.Chart(data, title="t\x0b").mark_point().encode(x="a:Q", y="c:N"), Path(f"c.{suffix}"))
    assert len(made) > 100
