from __future__ import annotations

import pandas as pd

from tvlars_probe.analyses.findings import COLUMNS, findings_by_rule


def test_a_row_per_rule_has_its_first_finding_and_a_text_in_any_case() -> None:
    rules = pd.Categorical(["b", "a", "b"], categories=["a", "b", "never"])
    texts = pd.Categorical(["one", None, "two"])
    table = pd.DataFrame({
        "step": [3, 1, 9], "rule": rules, "parameter": pd.Categorical(["w", None, "v"]), "value": [1.0, 2.0, 3.0],
        "threshold": [0.5, None, 0.5], "text": texts,
    })  # fmt: skip
    found = findings_by_rule(table)
    assert tuple(found.columns) == COLUMNS
    a, b = found.to_dict("records")
    assert (a["rule"], a["findings"], a["first_step"], a["last_step"], a["text"]) == ("a", 1, 1, 1, "")
    assert (b["rule"], b["findings"], b["first_step"], b["last_step"]) == ("b", 2, 3, 9)
    assert (b["parameter"], b["value"], b["threshold"], b["text"]) == ("w", 1.0, 0.5, "one")
    assert findings_by_rule(table.iloc[:0]).empty
