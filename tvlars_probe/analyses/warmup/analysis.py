"""Was warm-up needed? The marks of a run, its features, and the answer of the rule on them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.answered import AnsweredOfRun
from tvlars_probe.analyses.warmup.features import CURVATURE_COLUMNS, warmup_features
from tvlars_probe.analyses.warmup.marks import WarmupMarks, marks_of
from tvlars_probe.analyses.warmup.rule import judge
from tvlars_probe.displays.displayed import ShownTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid
    from tvlars_probe.analyses.verdict import Figure, Verdict
    from tvlars_probe.analyses.warmup.thresholds import Thresholds


@dataclass(frozen=True, kw_only=True, repr=False)
class Warmup(AnsweredOfRun, WarmupMarks):
    """What a trace says of warm-up: its marks, and an answer.

    Attributes:
        verdict: the answer of `tvlars_probe.analyses.warmup.rule`.
        features: what the rule may read, by `tvlars_probe.analyses.warmup.features`.
    """

    verdict: Verdict
    features: tuple[Figure, ...]

    def _tables(self) -> Iterable[ShownTable]:
        order = ["length", "overwritten_steps", "hot_steps"]
        layers = self.layers.sort_values(order, ascending=False, kind="stable")
        yield ShownTable.of_frame(layers, headings.LAYERS, "Layers, those first that ask for the longest warm-up")


def analyse_warmup(
    grid: LayerGrid,
    steps: pd.DataFrame,
    facts: RunFacts,
    thresholds: Thresholds | None = None,
    *,
    accuracy: float | None = None,
    curvature: pd.DataFrame | None = None,
) -> Warmup:
    """Tell whether a run needed warm-up, for which layers, and of what length.

    Args:
        grid: the columns `tvlars_probe.analyses.warmup.marks.COLUMNS` of the table ``layers``.
        steps: the columns `tvlars_probe.analyses.warmup.marks.STEP_COLUMNS` of every update.
        facts: what the run's manifest tells.
        thresholds: thresholds of the marks.
        accuracy: the last test accuracy in percent; None where there is none.
        curvature: the columns `CURVATURE_COLUMNS` of the table ``curvature``; None where nothing was measured.
    """
    marks = marks_of(grid, steps, facts, thresholds)
    measured = pd.DataFrame(columns=list(CURVATURE_COLUMNS)) if curvature is None else curvature
    features = warmup_features(grid, steps, marks, accuracy=accuracy, curvature=measured)
    found = {f.name: getattr(marks, f.name) for f in dataclasses.fields(marks)}
    return Warmup(**found, verdict=judge(marks, features), features=features)
