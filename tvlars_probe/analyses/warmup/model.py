"""The fitted part of the rule: how probable each outcome is, from a few features of a run.

A multinomial logistic regression. Each feature *x* enters as log₁₀ of *x* kept within its range, minus a centre, over a
scale; the scores of the outcomes are sums of these times weights, and the probabilities are their softmax. Numbers and
counts are read from ``model.json``, which ``python -m benchmarks.verdicts rules --write`` writes.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses.verdict import Reliability

if TYPE_CHECKING:
    from collections.abc import Mapping

SIDES = ("without", "with")
"""Runs without warm-up, and runs with it: each has a model of its own."""


@dataclass(frozen=True)
class Term:
    """How a feature enters the scores.

    Attributes:
        feature: its name.
        low, high: the range that it is kept within.
        centre, scale: of the logarithm.
        weights: by outcome.
    """

    feature: str
    low: float
    high: float
    centre: float
    scale: float
    weights: Mapping[str, float]

    def value(self, x: float) -> float:
        """The feature as it enters: its logarithm, centred and scaled. An infinite one counts as the range's end."""
        return (math.log10(min(max(x, self.low), self.high)) - self.centre) / self.scale


@dataclass(frozen=True)
class Model:
    """The model of one side.

    Attributes:
        intercepts: by outcome.
        terms: the features.
        least: by answer, the probability from which it is given; an answer without one is never given.
        reliability: by answer, how often it was right of runs that the model wasn't fitted on.
    """

    intercepts: Mapping[str, float]
    terms: tuple[Term, ...]
    least: Mapping[str, float]
    reliability: Mapping[str, Reliability]

    def probabilities(self, features: Mapping[str, float | None]) -> dict[str, float] | None:
        """The probability of each outcome; None where the trace lacks a feature."""
        values = [features.get(term.feature) for term in self.terms]
        if any(value is None or math.isnan(value) for value in values):
            return None
        entered = [term.value(value) for term, value in zip(self.terms, values, strict=True) if value is not None]
        scores = {
            outcome: intercept + sum(term.weights[outcome] * x for term, x in zip(self.terms, entered, strict=True))
            for outcome, intercept in self.intercepts.items()
        }
        highest = max(scores.values())
        parts = {outcome: math.exp(score - highest) for outcome, score in scores.items()}
        total = sum(parts.values())
        return {outcome: part / total for outcome, part in parts.items()}

    def answer(self, probabilities: Mapping[str, float]) -> str | None:
        """The answer that is probable enough; None where none is."""
        for answer, least in self.least.items():
            if probabilities[answer] >= least:
                return answer
        return None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Model:
        """The model by its entry of ``model.json``."""
        return cls(
            intercepts=told["intercepts"],
            terms=tuple(Term(**term) for term in told["terms"]),
            least=told["least"],
            reliability={answer: Reliability.of(**counts) for answer, counts in told["reliability"].items()},
        )


@dataclass(frozen=True)
class Fitted:
    """What was fitted and counted.

    Attributes:
        models: by side.
        dead: by "diverged" and "never learned", of how many runs without warm-up that ended so (``said``) the cell's
            outcome was that warm-up was needed (``right``).
    """

    models: Mapping[str, Model]
    dead: Mapping[str, Reliability]


@functools.cache
def fitted() -> Fitted:
    """The models that come with the package."""
    told = json.loads(resources.files(__package__).joinpath("model.json").read_text("utf-8"))
    return Fitted(
        models={side: Model.of(told[side]) for side in SIDES},
        dead={answer: Reliability.of(**counts) for answer, counts in told["dead"].items()},
    )
