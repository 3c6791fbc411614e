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

    findings = findings.assign(rule=findings["rule"].astype(str))  # as a category it keeps rules without findings
    first, steps = findings.drop_duplicates("rule"), findings.groupby("rule", sort=False)["step"]
    told = {name: first[name].astype(object).to_numpy() for name in ("parameter", "value", "threshold", "text")}
    counted = {"findings": steps.size().to_numpy(), "first_step": first["step"].to_numpy()}
    table = pd.DataFrame({"rule": first["rule"].to_numpy(), **counted, "last_step": steps.max().to_numpy(), **told})
    table["text"] = table["text"].where(table["text"].notna(), "")  # a stranger's table may lack it
    return table[list(COLUMNS)].sort_values("first_step", kind="stable", ignore_index=True)
