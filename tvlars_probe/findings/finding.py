"""A finding: one thing that a rule has found in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule has found; a row of the table ``findings``.

    Attributes:
        step: the step in which it begins.
        rule: id of the rule, one of `tvlars_probe.findings.ids.IDS`.
        parameter: name of the tensor it is about; None where it is about the whole model.
        value: what the rule compares.
        threshold: what it compares the value with; None for a rule without one.
        text: the finding as one sentence for people.
    """

    step: int
    rule: str
    parameter: str | None
    value: float | None
    threshold: float | None
    text: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.rule}: {self.text}"


def finding_columns(findings: Sequence[Finding]) -> dict[str, list[Any]]:
    """The findings as columns of the table ``findings``."""
    names = ("step", "rule", "parameter", "value", "threshold", "text")
    return {name: [getattr(finding, name) for finding in findings] for name in names}
