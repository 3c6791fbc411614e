"""Lets all rules look at each flush, and keeps what they find within bounds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.findings.ids import DEFAULT
from tvlars_probe.findings.non_finite import NonFinite
from tvlars_probe.findings.of_noise import BatchBeyondNoise
from tvlars_probe.findings.of_ratios import FullRateFromZero, RatioClamped, RatioVanished
from tvlars_probe.findings.of_the_model import GradSpike, LossSpike, PhiDead
from tvlars_probe.findings.of_updates import ExcludedOverwritten, UpdateBelowRounding, WeightOverwritten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.rule import FindingRule
    from tvlars_probe.findings.window import Window

RULES: dict[str, type[FindingRule]] = {
    rule.name: rule
    for rule in (
        NonFinite,
        LossSpike,
        GradSpike,
        RatioClamped,
        RatioVanished,
        FullRateFromZero,
        PhiDead,
        WeightOverwritten,
        ExcludedOverwritten,
        UpdateBelowRounding,
        BatchBeyondNoise,
    )
}
"""The rules by their ids."""

MOST = 100
"""Findings of one rule in a run; with the last of them the rule falls silent."""


class Inspector:
    """Looks at the steps of a run, flush by flush.

    Args:
        rules: ids of the rules to apply.
    """

    def __init__(self, rules: Iterable[str] = DEFAULT) -> None:
        self._rules = [RULES[name]() for name in rules]
        self._counts = {rule.name: 0 for rule in self._rules}

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of the rules."""
        return tuple(self._counts)

    def inspect(self, window: Window) -> list[Finding]:
        """The findings of these steps, in order of steps. The windows of a run come in order."""
        # Rules compute with norms that aren't finite, too: a warning of that tells nothing, and may be an error.
        with np.errstate(all="ignore"):
            found = [finding for rule in self._rules for finding in self._bounded(rule, window)]
        return sorted(found, key=lambda finding: finding.step)

    def _bounded(self, rule: FindingRule, window: Window) -> Iterator[Finding]:
        if self._counts[rule.name] >= MOST:
            return  # it is never asked again, so that its state needn't follow the run
        for finding in rule.find(window):
            self._counts[rule.name] += 1
            if self._counts[rule.name] == MOST:
                yield dataclasses.replace(finding, text=f"{finding.text}; the rule says no more after {MOST} findings")
                return
            yield finding

    def begin_phase(self) -> None:
        """Another model and other optimizers follow."""
        self._rules = [type(rule)() for rule in self._rules]

    def state(self) -> dict[str, Any]:
        """What `load` takes: plain values."""
        return {rule.name: {"count": self._counts[rule.name], **rule.state()} for rule in self._rules}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; a rule that it doesn't know begins anew.

        Raises:
            ValueError: it has another form than a state.
        """
        for name, blank in self.state().items():
            if name in state and not _has_form(state[name], blank):
                raise ValueError(f"no state of the rule {name}")
        for rule in self._rules:
            if rule.name in state:
                self._counts[rule.name] = state[rule.name]["count"]
                rule.load(state[rule.name])


def _has_form(value: Any, blank: Any) -> bool:
    """Whether a value has the form of one in a blank state. [] is of names or numbers, {} of numbers by name."""
    if isinstance(blank, bool):
        return isinstance(value, bool)
    if isinstance(blank, int | float):
        return _is_number(value)
    if isinstance(blank, list):
        return isinstance(value, list) and (all(map(_is_number, value)) or all(isinstance(v, str) for v in value))
    if not isinstance(value, dict) or (blank and value.keys() != blank.keys()):
        return False
    if not blank:
        return all(isinstance(name, str) and _is_number(number) for name, number in value.items())
    return all(_has_form(value[name], inner) for name, inner in blank.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
