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
