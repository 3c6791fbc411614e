"""What a diagnosis finds: one entry for each thing that was tried. Needs no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tvlars_probe.displays.displayed import Displayed, Shown, ShownTable

if TYPE_CHECKING:
    from collections.abc import Sequence

Answer = Literal["right", "wrong", "not applicable", "can't tell"]

WORST_FIRST: tuple[Answer, ...] = ("wrong", "can't tell", "right", "not applicable")
"""The answers, in the order in which the answer of several trials is chosen."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What came of one trial.

    Attributes:
        answer: whether it was what was expected.
        came: what came, in half a sentence.
    """

    answer: Answer
    came: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: its id, which never changes.
        tried: what was done.
        expected: what a sound optimizer, or run, does.
        came: what it did.
        answer: "right", "wrong", "not applicable" (it can't be tried with this class, or the run has none of it) or
            "can't tell".
        remedy: what to do about it; empty where nothing is wrong.
    """

    name: str
    tried: str
    expected: str
    came: str
    answer: Answer
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Diagnosis(Displayed):
    """All that was tried.

    Attributes:
        subject: the optimizer's class, or the run's name.
        description: what an optimizer was found to do, and what `tvlars_probe.describe` says of it, in lines; of a run,
            what it is.
        checks: the entries, in the order in which they were made.
        untried: why nothing could be tried, or nothing but a step that raises; None where something could.
    """

    subject: str
    description: tuple[str, ...]
    checks: tuple[Check, ...]
    untried: str | None = None

    def _shown(self) -> Shown:
        heads = {"name": "check", "answer": "answer", "came": "what came", "remedy": "remedy"}
        rows = [dataclasses.asdict(check) for check in self.checks]
        wrong = ", ".join(check.name for check in self.wrong)
        return Shown(
            head=self.subject,
            answer=f"wrong: {wrong}" if wrong else self.untried or "nothing wrong",
            lines=self.description,
            tables=(ShownTable.of_rows(rows, heads),),
        )

    @property
    def wrong(self) -> tuple[Check, ...]:
        """The entries that are wrong."""
        return tuple(check for check in self.checks if check.answer == "wrong")

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return {"wrong": [check.name for check in self.wrong], **dataclasses.asdict(self)}


def joined(several: Sequence[tuple[str, Observed]]) -> Observed:
    """One observed of the same trial made several times: the worst answer, and what came each time if that differs.

    Args:
        several: by what tells the trials apart, such as "float32".
    """
    answer = next(one for one in WORST_FIRST if any(observed.answer == one for _, observed in several))
    texts = {observed.came for _, observed in several}
    if len(texts) == 1:
        return Observed(answer, texts.pop())
    of_answer = [(label, observed) for label, observed in several if observed.answer == answer]
    if len(of_answer) == len(several):
        return Observed(answer, of_answer[0][1].came)
    return Observed(answer, "; ".join(f"in {label}: {observed.came}" for label, observed in of_answer))
