"""The findings of a run, rule by rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("rule", "findings", "first_step", "last_step", "parameter", "value", "threshold", "text")
"""Columns of the table."""


def findings_by_rule(findings: pd.DataFrame) -> pd.DataFrame:
    """A row per rule that has found something: how often, from when to when, and its first finding.

    Args:
        findings: the table ``findings`` of one run.

    Returns:
        rows in order of the first step: ``rule``, the number of ``findings``, ``first_step`` and ``last_step`` of them,
        and ``parameter``, ``value``, ``threshold`` and ``text`` of the first one.
    """
    import pandas as pd

    rows = []
    for rule, found in findings.groupby("rule", sort=False, observed=True):
        first = found.iloc[0]
        rows.append((
            str(rule), len(found), int(first["step"]), int(found["step"].max()), first["parameter"], first["value"],
            first["threshold"], str(first["text"]),
        ))  # fmt: skip
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values("first_step", kind="stable", ignore_index=True)
