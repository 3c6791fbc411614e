"""What is slow to make of runs: their charts, verdicts and reports, as the report has them. Called in threads."""

from __future__ import annotations

import dataclasses
import glob
import importlib
import json
import re
from typing import TYPE_CHECKING, Any

from tvlars_probe.board.elements import number, text
from tvlars_probe.board.listing import refuse_leading_out
from tvlars_probe.errors import RunFailedError, UserError
from tvlars_probe.traces.manifest import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path

    from tvlars_probe.analyses.source import Source

_TABLES = ("trace", "sharpness", ".")


def warm_up() -> None:
    """Import what charts and verdicts are made with, which takes seconds."""
    importlib.import_module("tvlars_probe.report.content")
    importlib.import_module("tvlars_probe.runs")


def stamp(runs: Sequence[Path]) -> Hashable:
    """What changes when something of the runs is written: times of the manifests and of the tables' folders."""
    return tuple(_times(run) for run in runs)


def _times(run: Path) -> Hashable:
    folders = [folder for home in _TABLES if (run / home).is_dir() for folder in sorted((run / home).iterdir())]
    times = []
    for place in (run / FILE_NAME, *folders):
        try:
            times.append((place.name, place.stat().st_mtime_ns))
        except OSError:
            continue
    return tuple(times)


def opened(folder: Path, runs: Sequence[Path]) -> list[Source]:
    """The runs for analyses, as the command `report` opens them.

    Raises:
        UserError: one can't be read, or holds a link that leads out of the folder.
    """
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.runs import open_runs

    for run in runs:
        refuse_leading_out(folder, run)
    # A folder's name may hold a pattern's signs.
    return [Source(run) for run in open_runs([glob.escape(str(run)) for run in runs])]


def charts(folder: Path, run: Path) -> bytes:
    """The charts of loss and accuracy, as JSON: ``html``, and ``specs`` by the names of the places in it."""

    def make() -> dict[str, Any]:
        from tvlars_probe.charts.curves import loss_bins
        from tvlars_probe.report.content import loss_and_accuracy
        from tvlars_probe.report.elements import section_of

        (source,) = opened(folder, [run])
        # Not the losses that are followed: they are few, at uneven distances, which a chart shows as gaps.
        losses = source.steps(["step", "loss"])
        epochs = source.epochs(["epoch", "test_acc1"])
        specs: dict[str, Any] = {}
        section = loss_and_accuracy([(source.facts, loss_bins(losses))], [(source.facts, epochs)])
        return {"html": section_of(section, specs, places="live"), "specs": specs}

    return _told(make)


def sections(folder: Path, runs: Sequence[Path]) -> bytes:
    """Verdicts, charts and tables, as JSON: ``html``, ``specs`` by name, and ``picker``, the list of layers.

    Of one run all that the report has of it, but for what `charts` gives; of several what the report has of them
    together.
    """

    def make() -> dict[str, Any]:
        from tvlars_probe.report.content import gather
        from tvlars_probe.report.elements import layer_picker, section_of, verdict_cards

        sources = opened(folder, runs)
        if len(sources) == 1:
            report = gather(sources)
        else:
            report = dataclasses.replace(gather(sources, most_detailed=0), left_out=0)
        specs: dict[str, Any] = {}
        shown = [section for section in report.sections if section.anchor != "curves"]
        html = verdict_cards(report) + "".join(section_of(section, specs) for section in shown)
        return {"html": html, "specs": specs, "picker": layer_picker(report)}

    return _told(make)


def whole_report(folder: Path, runs: Sequence[Path]) -> bytes:
    """The very page that the command `report` writes of these runs.

    Raises:
        UserError: a run can't be read.
    """
    from tvlars_probe.report.writing import page_of

    return page_of(opened(folder, runs))


def file_name(names: Sequence[str]) -> str:
    """What a report's file is called: plain letters, whatever runs are called."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", names[0]).strip("-.")[:80] if len(names) == 1 else f"{len(names)}-runs"
    return f"report-{plain or 'run'}.html"


def _told(make: Callable[[], dict[str, Any]]) -> bytes:
    """What was made as JSON, or why it can't be: a stranger's run must not end in an error of the server."""
    try:
        content = make()
    except Exception as error:
        content = {"html": f'<p class="trouble">{text(why_not(error), 800)}</p>', "specs": {}}
    # ASCII alone: lone surrogates are no UTF-8.
    return json.dumps(content, separators=(",", ":")).encode()


def why_not(error: Exception) -> str:
    """What a reader is told where something can't be made of runs."""
    if isinstance(error, (UserError, RunFailedError, OSError)):
        return str(error)
    if isinstance(error, MemoryError):
        return "This machine has too little memory for this."
    return f"This can't be made of what is on record ({type(error).__name__}: {str(error)[:400]})."


def with_cost(content: bytes, seconds: float, again: float) -> bytes:
    """The JSON of `sections` with what it cost and how often it is made anew, told to the reader as ``note``."""
    note = f"Made in {number(seconds, '.2g')} s; while the run trains, made anew every {again:.0f} s at most."
    return content[:-1] + f',"note":{json.dumps(note)}}}'.encode()
