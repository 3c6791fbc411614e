"""The page that lists runs, and its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.board.elements import attribute, number, page, progress, status_badge, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tvlars_probe.board.listing import ListedRun

STATUSES = ("running", "completed", "diverged", "interrupted", "failed", "killed", "damaged")

COLUMNS = (
    "run", "status", "steps", "findings", "last loss", "best test acc", "optimizer", "peak lr", "batch", "age",
)  # fmt: skip

MOST_RUNS = 2000
"""Most rows of the list; how many are left out is said."""


def list_page(folder: Path) -> str:
    """The frame of the list; board.js asks for its rows, and goes on asking."""
    options = "".join(f'<option value="{status}">{status}</option>' for status in STATUSES)
    bar = (
        '<label>Search <input id="search" type="search" autocomplete="off" placeholder="name, optimizer …"></label>'
        f'<label>Status <select id="status"><option value="">all</option>{options}</select></label>'
        '<button id="compare" type="button" disabled>Compare: tick two</button>'
    )
    heads = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in ("compare", *COLUMNS))
    main = (
        f'<p class="quiet">Runs below {text(folder)}</p><p id="count" role="status">Reading …</p>\n'
        '<table class="runs" role="table" aria-label="Runs"><thead role="rowgroup">'
        f'<tr role="row">{heads}</tr></thead><tbody id="rows" role="rowgroup"></tbody></table>\n'
    )
    return page("list", "Runs", bar, main)


def rows(runs: Sequence[ListedRun]) -> str:
    """The list's rows."""
    return "".join(map(_row, runs[:MOST_RUNS]))


def _row(run: ListedRun) -> str:
    words = " ".join((run.name, run.status, run.optimizer or "")).lower()
    found = f'<em class="warn">{run.findings:,}</em>' if run.findings else ""
    accuracy = "" if run.accuracy is None else f"{number(run.accuracy, '.2f')} %"
    created = f'<time data-since="{attribute(run.created)}"></time>' if run.created else ""
    tick = f'<input type="checkbox" value="{run.key}" aria-label="Compare {attribute(run.name)}">'
    trouble = "" if run.error is None else f'<small class="trouble">{text(run.error, 400)}</small>'
    cells = (
        ("compare", tick), ("run", f'<a href="run?run={run.key}">{text(run.name)}</a>{trouble}'),
        ("status", status_badge(run.status)),
        ("steps", "" if run.error else progress(run.done, run.total)), ("findings", found),
        ("last loss", number(run.loss)), ("best test acc", accuracy),
        ("optimizer", "" if run.optimizer is None else text(run.optimizer, 40)), ("peak lr", number(run.lr)),
        ("batch", "" if run.batch_size is None else f"{run.batch_size:,}"), ("age", created),
    )  # fmt: skip
    inner = "".join(
        f'<td role="cell" data-of="{name}"{"" if cell else " class=empty"}>{cell}</td>' for name, cell in cells
    )
    told = f'data-key="{run.key}" data-status="{attribute(run.status)}" data-words="{attribute(words, 1000)}"'
    return f'<tr role="row" {told}>{inner}</tr>'
