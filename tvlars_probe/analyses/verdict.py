"""What every analysis hands back: an answer, its reason, and the figures that it rests on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from tvlars_probe.displays.displayed import Displayed, Shown, ShownTable
from tvlars_probe.displays.html import sentence


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a verdict rests on.

    Attributes:
        name: its name in tables and in the report.
        value: the number; None where the trace doesn't hold it.
        unit: unit of the value; "1" is a pure number, "share" a number from 0 to 1 that is shown in percent.
        meaning: what it measures, in a sentence.
    """

    name: str
    value: float | None
    unit: str
    meaning: str

    @property
    def text(self) -> str:
        """The value with its unit, for a reader."""
        if self.value is None or (isinstance(self.value, float) and math.isnan(self.value)):
            return "unknown"
        if self.unit == "share":
            return f"{100 * self.value:.3g} %"
        if self.unit == "step":
            return f"{self.value:,.0f}"
        return f"{self.value:.4g}" + (f" {self.unit}" if self.unit not in ("1", "") else "")


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often an answer was right where it could be known: of runs that its rule wasn't fitted on.

    Attributes:
        right: number of times.
        said: number of times that it was given.
        low, high: Wilson's 95 % interval of right/said.
    """

    right: int
    said: int
    low: float
    high: float

    @classmethod
    def of(cls, right: int, said: int) -> Reliability:
        """With Wilson's interval; of no cases it is from 0 to 1."""
        if not said:
            return cls(right, said, 0.0, 1.0)
        from scipy import stats

        interval = stats.binomtest(right, said).proportion_ci(method="wilson")
        return cls(right, said, float(interval.low), float(interval.high))

    @property
    def text(self) -> str:
        """In words: "right in 47 of 50 like it (84 to 98 %)"."""
        return f"right in {self.right} of {self.said} like it ({100 * self.low:.0f} to {100 * self.high:.0f} %)"


@dataclass(frozen=True, slots=True, repr=False)
class Verdict(Displayed):
    """An answer with its reason.

    Attributes:
        question: what was asked.
        answer: the answer in a word or two; `CANT_TELL` where the trace doesn't hold one.
        reason: the rule's conditions as they were met, in one or two sentences.
        figures: what the reason rests on; the first one is to be shown beside the answer.
        reliability: how often such an answer was right; None where it isn't known.
    """

    question: str
    answer: str
    reason: str
    figures: tuple[Figure, ...] = ()
    reliability: Reliability | None = None

    def __getitem__(self, name: str) -> float | None:
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(f"no figure {name!r} (there are {', '.join(f.name for f in self.figures)})")

    def _shown(self) -> Shown:
        how_often = [] if self.reliability is None else [f"Such an answer was {self.reliability.text}."]
        rows = [{"figure": f.name.replace("_", " "), "value": f.text, "meaning": f.meaning} for f in self.figures]
        headings = {"figure": "rests on", "value": "value", "meaning": "meaning"} if rows else {}
        return Shown(
            head="",
            question=self.question,
            answer=self.answer,
            lines=(sentence(self.reason), *how_often),
            tables=(ShownTable(rows, headings),),
        )


CANT_TELL = "can't tell"
"""The answer where a trace doesn't hold one."""


def plain(value: Any) -> Any:
    """A result as values that JSON knows: frames become lists of rows; NaN and infinities become null."""
    if isinstance(value, pd.DataFrame):
        return [{str(name): plain(item) for name, item in row.items()} for row in value.to_dict("records")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What is kept out of repr for its size (configuration, table of parameters) is kept out of JSON, too.
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)
