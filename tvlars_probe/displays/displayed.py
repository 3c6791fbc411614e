"""Results that show themselves: in a console as one line, in a notebook as HTML that fits light and dark pages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.names import encodable, printable
from tvlars_probe.displays.html import plain, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

MOST_ROWS = 20
"""Most rows of a table in a notebook; the result itself has all."""

# No colour of letters or grounds: a notebook has its own, light or dark. Grey at half strength is seen on both.
_STYLE = (
    ".tvlars-probe{line-height:1.45;max-width:70em;overflow-x:auto}"
    ".tvlars-probe p{margin:.25em 0}"
    ".tvlars-probe .quiet{opacity:.7}"
    ".tvlars-probe em{font-style:normal;font-weight:bold;border-bottom:2px solid}"
    ".tvlars-probe table{border-collapse:collapse;font-size:inherit;margin:.4em 0 .7em;color:inherit;background:none}"
    ".tvlars-probe tr{background:none!important}"
    ".tvlars-probe th,.tvlars-probe td{text-align:left;padding:.15em .8em .15em 0;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.45);vertical-align:top;white-space:normal}"
    ".tvlars-probe .n{text-align:right;font-variant-numeric:tabular-nums}"
)


@dataclass(frozen=True, slots=True)
class ShownTable:
    """A table of what is shown.

    Attributes:
        rows: by column, the values of cells; at most `MOST_ROWS`.
        headings: headings by column; only these columns are shown, in this order.
        title: what stands above it.
        more: how many further rows there are.
    """

    rows: Sequence[Mapping[Any, Any]]
    headings: Mapping[str, str]
    title: str = ""
    more: int = 0

    @classmethod
    def of_frame(cls, frame: pd.DataFrame, headings: Mapping[str, str], title: str = "") -> ShownTable:
        """The first rows of a frame, as `of_rows` shows them."""
        first = frame.head(MOST_ROWS).astype(object)
        return cls.of_rows(first.where(first.notna(), None).to_dict("records"), headings, title, len(frame))

    @classmethod
    def of_rows(
        cls, rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str], title: str = "", count: int | None = None
    ) -> ShownTable:
        """The first rows. Columns without any value are left out.

        Args:
            rows: by column, the values of cells.
            headings: headings by column.
            title: what stands above the table.
            count: how many rows there are in all, by default these.
        """
        first = rows[:MOST_ROWS]
        told = {name: head for name, head in headings.items() if any(_is_told(row.get(name)) for row in first)}
        return cls(first, told, title, (len(rows) if count is None else count) - len(first))

    @property
    def html(self) -> str:
        """The table with its title."""
        if not self.headings:
            return ""
        title = f"<p><b>{plain(self.title)}</b></p>" if self.title else ""
        note = f'<p class="quiet">… and {self.more:,} more row{"" if self.more == 1 else "s"}</p>' if self.more else ""
        return f"{title}{table(self.rows, self.headings)}{note}"


def _is_told(value: Any) -> bool:
    return value is not None and value != "" and value == value  # NaN differs from itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is shown of something.

    Attributes:
        head: what it is of.
        answer: what comes of it, in a few words; it stands in a console, too.
        question: what the answer is to.
        lines: sentences below.
        tables: tables below these.
    """

    head: str
    answer: str = ""
    question: str = ""
    lines: Sequence[str] = ()
    tables: Sequence[ShownTable] = ()

    @property
    def html(self) -> str:
        """All of it. Texts of runs are escaped."""
        told = [f"<b>{plain(self.head)}</b>" if self.head else "", plain(self.question)]
        told.append(f"<em>{plain(self.answer)}</em>" if self.answer else "")
        parts = [f"<p>{' '.join(filter(None, told))}</p>"]
        parts += [f"<p>{plain(line)}</p>" for line in self.lines]
        parts += [one.html for one in self.tables]
        return encodable(f'<div class="tvlars-probe"><style>{_STYLE}</style>{"".join(parts)}</div>')


class Displayed(ABC):
    """What shows itself. A subclass says in `_shown` what of it; a dataclass among them is made with ``repr=False``."""

    __slots__ = ()

    @abstractmethod
    def _shown(self) -> Shown:
        """What is shown. It names no more than a reader takes in: no arrays, no manifest."""

    def __repr__(self) -> str:
        shown = self._shown()
        told = ": ".join(filter(None, (shown.head, shown.answer)))
        return f"<{type(self).__name__} {printable(told)}>".replace(" >", ">").replace("\n", " ")

    def _repr_html_(self) -> str:
        return self._shown().html
