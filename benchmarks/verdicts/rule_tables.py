"""The tables of docs/evidence/verdicts.md on the rule on warm-up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import tvlars_probe
from benchmarks.verdicts import rules
from tvlars_probe.analyses.verdict import CANT_TELL, Reliability
from tvlars_probe.analyses.warmup.model import SIDES
from tvlars_probe.analyses.warmup.paired_gain import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

MODEL = Path(tvlars_probe.__file__).parent / "analyses" / "warmup" / "model.json"

COMMAND = "benchmarks.verdicts rules"
"""What writes them."""

_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def text() -> str:
    """All tables, as Markdown."""
    parts = []
    for side in SIDES:
        judged = rules.cross_judged(side)
        parts += [f"Runs {side} warm-up:", _of_answers(judged)]
    ends = rules.dead()
    told = "; ".join(
        f"of {counts['said']} that {'diverged' if name == 'diverged' else 'never learned'}, {counts['right']}"
        for name, counts in ends.items()
    )
    parts.append(f"Dead runs without warm-up whose cell shows that warm-up was needed: {told}.")
    return "\n\n".join(parts)


def _of_answers(judged: pd.DataFrame) -> str:
    """Said × was, and how often each answer is right."""
    table, known = rules.confusion(judged), judged["outcome"].isin(rules.OUTCOMES)
    counts = rules.counts(judged)
    rows = [
        (
            "said",
            *(f"was {name}" if name != "made no difference" else name for name in rules.OUTCOMES),
            UNKNOWN,
            "right",
        )
    ]
    for answer, row in table.iterrows():
        share = ""
        if answer in counts:
            found = Reliability.of(**counts[str(answer)])
            share = f"{found.right} of {found.said} ({100 * found.low:.0f} to {100 * found.high:.0f} %)"
        rows.append((str(answer), *(str(value) for value in row), share))
    open_share = float((judged["said"][known] == CANT_TELL).mean()) if known.any() else np.nan
    told = f"Can't tell: {100 * open_share:.0f} % of the runs of cells with a known outcome."
    doubted = [name for name, counted in counts.items() if counted["said"] and not rules.is_trusted(counted)]
    if doubted:
        told += f" The package doesn't say *{' or '.join(doubted)}* of such runs: it was wrong too often."
    return f"{_markdown(rows)}\n\n{told}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
