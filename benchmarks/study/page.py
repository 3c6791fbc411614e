"""The tables of docs/evidence/study.md, between marks in its text."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from benchmarks.study.answers import TABLES

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "study.md"
RESULTS = Path(__file__).parent / "results.csv"

_MARKS = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def results() -> pd.DataFrame:
    """The committed rows of `benchmarks.study.results.results_of`."""
    return pd.read_csv(RESULTS, dtype={"variant": "str"}).fillna({"variant": ""})


def filled(text: str, rows: pd.DataFrame) -> str:
    """The page with each table made anew from the rows of `benchmarks.study.results.results_of`."""
    return _MARKS.sub(lambda found: f"{found[1]}\n{markdown(TABLES[found[2]](rows))}\n\n{found[3]}", text)


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown; a line in place of one that has no rows."""
    if table.empty:
        return "Not trained yet."
    lines = [[*map(str, table.columns)], ["---"] * table.shape[1], *([*map(str, row)] for row in table.to_numpy())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
