"""The features of each run of the grid, which rules on warm-up may read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from benchmarks.verdicts.outcomes import IDENTITY, identity_of
from tvlars_probe.analyses.of_runs import warmup_of
from tvlars_probe.analyses.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvlars_probe.runs import Run


def features_of(runs: Iterable[Run]) -> pd.DataFrame:
    """A row per run: what it is, and a column per feature; null where the trace doesn't hold one."""
    rows = [{**identity_of(run), **{f.name: f.value for f in warmup_of(Source(run))[0].features}} for run in runs]
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(table.columns[len(IDENTITY) :], "float64"))
