"""Tables and paragraphs on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment

from tvlars_probe.commands.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType


class Terminal(Console):
    """A console on which text is text: no markup, no highlighting, no control characters.

    Args:
        piped: width where the output goes to a file or another program; that of the terminal by default.
        **options: of `rich.console.Console`.
    """

    def __init__(self, *, piped: int | None = None, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, **options)
        if piped is not None and not self.is_terminal:
            self.width = piped

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
