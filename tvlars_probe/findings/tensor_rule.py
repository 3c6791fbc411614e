"""What rules about single tensors share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.findings.memory import Episodes
from tvlars_probe.findings.rule import FindingRule, first_of_each_step, with_others

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Flags, Floats, Window


class TensorRule(FindingRule):
    """Base of the rules that compare a figure of each tensor with a threshold of its own.

    In most flushes no tensor breaks a rule, and none has before: a rule then returns after a pass or two.
    """

    sentence: str
    """What is said of a tensor, from its ``name``, ``value`` and ``threshold``, and from ``what`` the value is."""

    def __init__(self) -> None:
        self._episodes = Episodes()

    def _is_quiet(self, broken: Flags) -> bool:
        """Whether there is nothing to report, and no episode that may end."""
        return not broken.any() and not self._episodes.any_open

    def _report(
        self,
        window: Window,
        broken: Flags,
        judged: Flags,
        value: Floats,
        threshold: Floats,
        *,
        below: bool,
        what: Callable[[int, int], str] | None = None,
    ) -> Iterator[Finding]:
        """Yield a finding for each step in which tensors begin to break the rule, about the one furthest off.

        ``what`` says in words, of a step and a tensor by their places, what the sentence calls so.
        """
        names = window.tensors.names
        rows, tensors = self._episodes.begun(broken, judged, names)
        if not len(rows):
            return
        severity = threshold / value if below else value / threshold
        for row, worst, others in first_of_each_step(rows, tensors, severity):
            a, b = float(value[row, worst]), float(threshold[row, worst])
            told = {
                "name": names[worst],
                "value": a,
                "threshold": b,
                "what": None if what is None else what(row, worst),
            }
            text = with_others(self.sentence.format(**told), others, names)
            yield self.finding(window.first_step + row, text, parameter=names[worst], value=a, threshold=b)

    def state(self) -> dict[str, Any]:
        return {"episodes": self._episodes.state()}

    def load(self, state: dict[str, Any]) -> None:
        self._episodes.load(state["episodes"])
