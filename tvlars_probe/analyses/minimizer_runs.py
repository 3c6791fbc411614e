"""The sharp-minimizer analysis of a recorded run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.analyses.loading import facts_of
from tvlars_probe.analyses.minimizer import COLUMNS, SPECTRUM_COLUMNS, Minimizer, SharpnessRule, analyse_minimizer

if TYPE_CHECKING:
    from tvlars_probe.traces.reader import Run


def minimizer_of(
    run: Run, *, phase: str | None = None, bn_mode: str | None = None, rule: SharpnessRule | None = None
) -> Minimizer:
    """The answer for a run."""
    facts = facts_of(run, phase)
    curvature, spectrum = run.frame("curvature", COLUMNS), run.frame("spectrum", SPECTRUM_COLUMNS)
    spectrum = spectrum[spectrum["scope"].astype(str) == "all"]
    if len(run.manifest.parameters) > 1:
        curvature, spectrum = (rows[rows["phase"].astype(str) == facts.phase] for rows in (curvature, spectrum))
    return analyse_minimizer(curvature, spectrum, facts, bn_mode=bn_mode, rule=rule)
