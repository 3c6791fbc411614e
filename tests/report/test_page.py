"""The page as text: complete, self-contained, and safe whatever a manifest holds."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import torch

import tvlars_probe
from tvlars_probe.analyses.source import Source
from tvlars_probe.displays.html import plain
from tvlars_probe.report.content import MOST_DETAILED, gather
from tvlars_probe.report.definitions import DEFINITIONS
from tvlars_probe.report.page import render
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"


class Page(HTMLParser):
    """Elements, their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._raw: str | None = None
        self.specs = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw is None:
            self.words.append(data)
        elif self.elements[-1][1].get("id") == "specs":
            self.specs += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(recorded: list[Path]) -> Page:
    return Page(render(gather([Source(open_run(run)) for run in recorded])))


def test_verdicts_come_first_then_charts_tables_configuration_and_definitions(page: Page) -> None:
    sections = [str(section["id"]) for section in page.named("section")]
    assert sections[0] == "verdicts"
    assert sections[-2:] == ["environment", "definitions"]
    assert {"warmup-1", "warmup-2", "warmup-3", "minimizer-1", "minimizer-2", "minimizer-3", "gap"} <= {*sections}
    for card in page.named("a"):
        assert str(card["href"]).removeprefix("#") in sections
    for question in ("Was warm-up needed?", "Is it trapped in a sharp minimum?", "Do sharper minima generalise worse"):
        assert question in page.text
    assert all(" ".join(text.split()) in page.text for text in DEFINITIONS.values())


def test_every_chart_has_its_place_and_its_specification(page: Page) -> None:
    specs = json.loads(page.specs)
    places = [str(div["id"]) for div in page.named("div") if div.get("class") == "chart"]
    assert places == list(specs)
    assert all("$schema" in spec for spec in specs.values())


def test_nothing_is_fetched(page: Page) -> None:
    for _, attributes in page.elements:
        assert attributes.get("src") is None
        assert str(attributes.get("href", "#")).startswith(("#", "data:"))


def test_configuration_and_environment_of_every_run_are_on_the_page(page: Page, recorded: list[Path]) -> None:
    for run in map(open_run, recorded):
        assert run.name in page.text
        assert str(run.manifest.segments[0]["torch"]) in page.text
    assert "configuration › optimizer › lmbda" in page.text


def test_what_a_manifest_or_a_layer_is_called_is_text_and_nothing_else(recorded: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(recorded[0], run)
    manifest = json.loads((run / "run.json").read_text())
    manifest["command"] = ["train", HOSTILE]
    manifest["notes"] = [HOSTILE]
    manifest["data"]["name"] = HOSTILE
    (run / "run.json").write_text(json.dumps(manifest))
    with_layer = rename_a_layer(run, "0.weight", HOSTILE)
    report = render(gather([Source(open_run(run))]))
    page = Page(report)
    assert page.named("img") == []
    assert len(page.named("script")) == 3
    assert page.text.count("alert(2)") >= 3
    assert with_layer in {row.get("data-layer") for row in page.named("tr")}
    assert any(layer.get("parameter") == HOSTILE for layer in rows_of(json.loads(page.specs)))


def rename_a_layer(run: Path, before: str, after: str) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted((run / "trace" / "layers").glob("*.parquet")):
        table = pq.read_table(path)
        names = [after if name == before else name for name in table["parameter"].to_pylist()]
        place = table.schema.get_field_index("parameter")
        column = pa.array(names).dictionary_encode()
        pq.write_table(table.set_column(place, table.schema.field("parameter"), column), path)
    return after


def rows_of(specs: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    text = json.dumps(specs)
    return [row for row in json.loads(f"[{','.join(re.findall(r'{[^{}]*}', text))}]") if "parameter" in row]


def copied(source: Path, path: Path, **changed: object) -> Path:
    """The run again at ``path``, with entries of its manifest changed."""
    shutil.copytree(source, path)
    manifest = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(manifest | changed))
    return path


def test_runs_beyond_the_detailed_ones_stand_in_the_tables(trained: Callable[..., Path], tmp_path: Path) -> None:
    # Without a seed each run is a setting by itself.
    runs = [copied(trained("lars"), tmp_path / f"run-{index}", seed=None) for index in range(MOST_DETAILED + 2)]
    report = gather([Source(open_run(run)) for run in runs])
    assert report.left_out == 2
    assert len(report.runs.frame) == MOST_DETAILED + 2
    assert sum(section.anchor.startswith("warmup-") for section in report.sections) == MOST_DETAILED
    assert "2 further runs" in Page(render(report)).text


def test_of_runs_that_differ_in_their_seed_alone_one_has_charts_of_its_own(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [copied(trained("lars"), tmp_path / f"run-{seed}", seed=seed) for seed in range(3)]
    runs.append(copied(trained("tvlars"), tmp_path / "other"))
    report = gather([Source(open_run(run)) for run in runs])
    assert [s.title.partition(":")[0] for s in report.sections if s.anchor.startswith("warmup-")] == ["run-1", "other"]
    assert report.left_out == 2
    assert "the one of median accuracy has charts of its own" in Page(render(report)).text


def test_contents_lead_to_every_section_and_stand_before_them(page: Page) -> None:
    names = [name for name, _ in page.elements]
    assert names.index("nav") < names.index("section")
    assert {*links_of_contents(page)} == {f"#{section['id']}" for section in page.named("section")}


def links_of_contents(page: Page) -> list[str]:
    """The targets of the table of contents, in order."""
    start = next(index for index, (name, _) in enumerate(page.elements) if name == "nav")
    end = next(index for index, (name, _) in enumerate(page.elements) if name == "section")
    return [str(attributes["href"]) for name, attributes in page.elements[start:end] if name == "a"]


def test_what_is_alike_in_all_runs_is_told_once(page: Page) -> None:
    label = "configuration › data › name"
    assert page.text.count(label) == 1
    assert page.text.index("Alike in all 3 runs") < page.text.index(label)


def test_an_unfinished_and_an_empty_run_make_a_page(trained: Callable[..., Path], tmp_path: Path) -> None:
    killed = copied(trained("lars"), tmp_path / "killed", status="running")
    empty = copied(trained("lars"), tmp_path / "empty", status="running", seed=9, batch_size=7, phases=[])
    shutil.rmtree(empty / "trace")
    page = Page(render(gather([Source(open_run(killed)), Source(open_run(empty))])))
    assert page.text.count("killed") >= 2
    assert "No layer was recorded" in page.text


def test_a_density_of_another_operator_and_curvature_of_nan_make_a_page(measured: list[Path], tmp_path: Path) -> None:
    run = copied(measured[0], tmp_path / "odd")
    overwrite(run, "spectrum", "operator", "relative")
    overwrite(run, "curvature", "value", float("nan"))
    assert "relative Hessian" in render(gather([Source(open_run(run))]))


def overwrite(run: Path, table: str, column: str, value: object) -> None:
    """Put one value into all rows of a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in (path for path in run.rglob("*.parquet") if path.parent.name == table):
        rows = pq.read_table(path)
        place, field = rows.schema.get_field_index(column), rows.schema.field(column)
        pq.write_table(rows.set_column(place, field, pa.array([value] * len(rows)).cast(field.type)), path)


@pytest.mark.parametrize(
    ("modes", "own"), [(("eval", "eval"), []), (("train", "eval"), ["b"]), (("eval", None), ["a"])]
)
def test_a_curve_of_sharpness_is_drawn_once_over_all_runs_or_in_its_own_section(
    measured: list[Path], tmp_path: Path, modes: tuple[str, str | None], own: list[str]
) -> None:
    # Of two modes the chart over all runs has the first; None is a run without any sharpness.
    for name, source, mode in zip("ab", measured[:2], modes, strict=True):
        run = copied(source, tmp_path / name)
        if mode is None:
            for rows in [path for path in run.rglob("*.parquet") if path.parent.name == "curvature"]:
                rows.unlink()
        else:
            overwrite(run, "curvature", "bn_mode", mode)
    report = gather([Source(open_run(tmp_path / name)) for name in "ab"])
    drawn = [
        section.title.partition(":")[0]
        for section in report.sections
        for spec in section.specs
        if spec["title"]["text"].startswith(("Early peak of the sharpness", "Trapped or escaped?"))
    ]
    assert drawn == ([] if None in modes else ["All runs"]) + own


def test_every_chart_says_its_title_to_a_screen_reader(page: Page) -> None:
    for spec in json.loads(page.specs).values():
        assert len(spec["description"]) > 10


def test_one_run_beyond_the_detailed_ones_is_one(trained: Callable[..., Path], tmp_path: Path) -> None:
    runs = [copied(trained("lars"), tmp_path / f"run-{index}", seed=None) for index in range(MOST_DETAILED + 1)]
    assert "1 further run stands in" in Page(render(gather([Source(open_run(run)) for run in runs]))).text


def test_the_list_of_layers_tells_long_names_apart_and_chooses_by_the_whole_name(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained("lars"), run)
    names = [f"bert.encoder.layer.{i}.attention.output.dense_projection.weight" for i in (10, 11)]
    for before, after in zip(("0.weight", "2.weight"), names, strict=True):
        rename_a_layer(run, before, after)
    text = render(gather([Source(open_run(run))]))
    options = dict(re.findall(r'<option value="([^"]+)">([^<]+)</option>', text))
    assert {*names} <= {*options}
    assert len({options[name] for name in names}) == 2
    assert all(len(label) <= 44 for label in options.values())


def test_control_characters_and_marks_of_direction_are_spelt_out() -> None:
    assert plain("\u202e<b>\x1b[2J") == "\\u202e&lt;b&gt;\\x1b[2J"


def test_tooltips_show_names_whole(recorded: list[Path]) -> None:
    assert "td.value { max-width: 80vw" in render(gather([Source(open_run(recorded[0]))]))


def test_recorded_loops_are_compared_by_the_rates_that_they_recorded(tmp_path: Path) -> None:
    for lr in (0.01, 0.1, 1.0):
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        with tvlars_probe.record(model, optimizer, tmp_path / f"lr{lr}", config={"seed": 0}) as rec:
            for _ in range(3):
                loss = model(torch.ones(8, 4)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.log(loss=loss, epoch=0)
            rec.log_epoch(epoch=0, test_acc1=100 * lr / 2)
    sources = [Source(one) for one in tvlars_probe.open_runs(tmp_path)]
    (section,) = [one for one in gather(sources).sections if one.anchor == "comparison"]
    frame = section.tables[0].frame
    assert frame[["rate", "rates", "seeds"]].to_numpy().tolist() == [[1.0, 3, 1]]
