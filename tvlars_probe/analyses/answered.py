"""What the results of analyses show of themselves: the verdict, and the tables that belong to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.displays.displayed import Displayed, Shown
from tvlars_probe.displays.html import sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.verdict import Verdict
    from tvlars_probe.displays.displayed import ShownTable


class Answered(Displayed):
    """A result with a verdict. A subclass says which of its tables are shown."""

    verdict: Verdict

    @property
    def _of(self) -> str:
        """What the answer is about; empty where the question says it."""
        return ""

    def _tables(self) -> Iterable[ShownTable]:
        return ()

    def _shown(self) -> Shown:
        verdict = self.verdict._shown()
        doubts: Sequence[str] = getattr(self, "doubts", ())  # few results have any
        return Shown(
            head=self._of,
            question=verdict.question,
            answer=verdict.answer,
            lines=(*verdict.lines, *map(sentence, doubts)),
            tables=tuple(self._tables()),
        )


class AnsweredOfRun(Answered):
    """A result about one run."""

    facts: RunFacts

    @property
    def _of(self) -> str:
        return self.facts.title
