"""Tables and paragraphs on the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tvlars_probe.admission.names import printable
from tvlars_probe.charts.names import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import ConsoleOptions, RenderableType


class Terminal(Console):
    """A console that prints text as text: no markup, no highlighting, and control characters spelt out.

    Args:
        piped: width in characters where the output goes to a file or another program; by default rich chooses it.
        **options: of `rich.console.Console`.
    """

    def __init__(self, *, piped: int | None = None, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, **options)
        if piped is not None and not self.is_terminal:
            self.width = piped

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # Whatever is printed passes here. Control segments are rich's own and never a run's text.
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


_SHORTEST = 24
"""Characters down to which texts are shortened before a column is left out."""

_BETWEEN = 2
"""Characters between two columns."""


@dataclass(frozen=True)
class TextColumn:
    """A column of a `FittedTable`.

    Attributes:
        heading: what stands above it.
        cells: its texts, a row each.
        is_number: whether it is set flush right and never shortened.
    """

    heading: str
    cells: Sequence[str]
    is_number: bool = False

    @property
    def is_name(self) -> bool:
        """Whether its texts are single words, which are shortened where others go on in the next line."""
        return not self.is_number and not any(" " in cell for cell in self.cells)

    @property
    def is_uniform(self) -> bool:
        """Whether it holds one value, or none, in all of several rows."""
        return len(self.cells) > 1 and len({*self.cells}) == 1

    @property
    def widest(self) -> int:
        """Characters of its widest text."""
        return max(map(cell_len, self.cells), default=0)

    @property
    def least(self) -> int:
        """Characters that it needs at least: headings are cut between words, numbers nowhere."""
        head = max(map(cell_len, self.heading.split()), default=0)
        return max(head, self.widest if self.is_number else min(self.widest, _SHORTEST))


class FittedTable:
    """A table that no console cuts. Where it is too wide, names are shortened, then columns make room.

    Names lose what they have in common (`tvlars_probe.charts.names`). Of the columns first those go that hold nothing,
    then those that hold one value in all rows, which a line above the table tells; then the last ones, which a line
    below it names.

    Args:
        columns: the columns, the most important first.
        title: what stands above the table.
        elsewhere: where a reader finds what is left out, such as "--json".
        of: what the rows are: "rows", or "rows shown" where there are more of them.
    """

    def __init__(
        self, columns: Sequence[TextColumn], *, title: str | None = None, elsewhere: str = "--json", of: str = "rows"
    ) -> None:
        self._columns, self._title, self._elsewhere, self._of = columns, title, elsewhere, of

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._title:
            yield Text(self._title, "italic")
        room, shown, left_out = options.max_width, [*self._columns], list[TextColumn]()
        if _total(column.least for column in shown) > room:
            kept = [column for column in shown if not column.is_uniform]
            told = [f"{column.heading} {column.cells[0]}" for column in shown if column.is_uniform and column.cells[0]]
            if kept:
                shown = kept
                if told:
                    yield Text(f"In all {self._of}: {', '.join(told)}")
        while len(shown) > 1 and _total(column.least for column in shown) > room:
            left_out.insert(0, shown.pop())
        table = Table(box=None, pad_edge=False)
        cells = []
        for column, width in zip(shown, _widths(shown, room), strict=True):
            justify: Any = "right" if column.is_number else "left"
            table.add_column(column.heading, justify=justify, width=width, overflow="fold")
            short = shortened(column.cells, width, cell_len) if column.is_name else {}
            cells.append([short.get(cell, cell) for cell in column.cells])
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        yield table
        if left_out:
            named = ", ".join(column.heading for column in left_out)
            yield f"Too wide for {room} columns: {named} (a wider terminal or {self._elsewhere} shows all)"


def _total(widths: Iterable[int]) -> int:
    return sum(width + _BETWEEN for width in widths) - _BETWEEN


def _widths(columns: Sequence[TextColumn], room: int) -> list[int]:
    """The width of each column: first the texts get what room there is, then the headings."""
    widths = [column.least for column in columns]
    for wanted in ([column.widest for column in columns], [cell_len(column.heading) for column in columns]):
        for index, width in enumerate(wanted):
            widths[index] += max(min(width - widths[index], room - _total(widths)), 0)
    return widths
