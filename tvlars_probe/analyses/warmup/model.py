"""The fitted part of the rule: a decision list whose conditions are lines on a few features of a run.

Lines and counts are read from ``model.json``, which ``python -m benchmarks.verdicts rules --write`` writes.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses.verdict import Reliability

if TYPE_CHECKING:
    from collections.abc import Mapping

SIDES = ("without", "with")
"""Runs without warm-up, and runs with it: each has a list of its own."""


@dataclass(frozen=True)
class Condition:
    """A feature must be on one side of a line.

    Attributes:
        feature: its name.
        line: the value that it is compared with.
        at_most: whether it must be at most the line; else at least.
    """

    feature: str
    line: float
    at_most: bool

    def holds(self, value: float) -> bool:
        """Whether it holds for a value of the feature; it does not for NaN."""
        return value <= self.line if self.at_most else value >= self.line


@dataclass(frozen=True)
class FittedRule:
    """An answer, which is given where all conditions hold.

    Attributes:
        answer: one of `tvlars_probe.analyses.warmup.paired_gain.OUTCOMES`.
        conditions: at least one.
        reliability: how often it was right of runs that it wasn't fitted on.
    """

    answer: str
    conditions: tuple[Condition, ...]
    reliability: Reliability

    def holds(self, features: Mapping[str, float | None]) -> bool:
        """Whether all conditions hold; a feature that the trace doesn't hold meets none."""
        values = [features.get(condition.feature) for condition in self.conditions]
        return all(
            value is not None and condition.holds(value)
            for value, condition in zip(values, self.conditions, strict=True)
        )


@dataclass(frozen=True)
class Fitted:
    """What was fitted and counted.

    Attributes:
        rules: by side, in the order in which they are tried.
        dead: by "diverged" and "never learned", of how many runs without warm-up that ended so (``said``) the cell's
            outcome was that warm-up was needed (``right``).
    """

    rules: Mapping[str, tuple[FittedRule, ...]]
    dead: Mapping[str, Reliability]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Fitted:
        """By the content of ``model.json``."""
        return cls(
            rules={side: tuple(rule_of(entry) for entry in told[side]) for side in SIDES},
            dead={answer: Reliability.of(**counts) for answer, counts in told["dead"].items()},
        )


def rule_of(entry: Mapping[str, Any]) -> FittedRule:
    """A rule by its entry of ``model.json``."""
    conditions = tuple(Condition(**condition) for condition in entry["conditions"])
    return FittedRule(entry["answer"], conditions, Reliability.of(**entry["reliability"]))


@functools.cache
def fitted() -> Fitted:
    """The rules that come with the package."""
    return Fitted.of(json.loads(resources.files(__package__).joinpath("model.json").read_text("utf-8")))
