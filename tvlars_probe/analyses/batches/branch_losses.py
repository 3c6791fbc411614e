"""The losses of branched runs, by the samples that they were trained on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from tvlars_probe.analyses.wording import some_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.source import Source


def losses_of(branches: Sequence[Source], metric: str) -> tuple[pd.DataFrame, list[str]]:
    """The losses of branches that can be compared, and sentences on what is left out of them.

    A branch that is there again, as in another folder, has made the same steps on the same samples, and is no draw of
    its own. Of such branches the first that has ended counts.

    Args:
        branches: of one checkpoint and one rule, with as many samples.
        metric: a column of ``epochs``.

    Returns:
        a row per branch and evaluation: ``run``, ``batch_size``, ``seed``, ``lr``, ``samples``, ``loss`` (infinite
        where a branch diverged), ``is_last``.
    """
    every = pd.concat([_losses(source, metric).assign(place=i) for i, source in enumerate(branches)], ignore_index=True)
    doubts = []
    unfinished = every.loc[every["loss"].isna() & every["is_last"], "run"]
    if len(unfinished):
        doubts.append(f"left out, as not finished or without {metric}: {some_of([*unfinished])}")
    losses = every[every["loss"].notna()]
    ended = {*losses.loc[losses["is_last"], "place"]}
    there = {*losses[["batch_size", "seed", "place"]].itertuples(index=False, name=None)}
    first: dict[tuple[int, int], int] = {}
    again: set[tuple[int, int]] = set()
    for size, seed, place in sorted(there, key=lambda branch: (branch[2] not in ended, branch[2])):
        if first.setdefault((size, seed), place) != place:
            again.add((size, seed))
            losses = losses[losses["place"] != place]
    if again:
        cells = some_of(
            [
                f"batch {size:,} with seed {seed}"
                for size, seed in sorted(again, key=lambda cell: (cell[0], str(cell[1])))
            ]
        )
        doubts.append(f"there more than once, so that only the first counts: {cells}")
    return losses.drop(columns="place"), doubts


def _losses(source: Source, metric: str) -> pd.DataFrame:
    """The losses of a branch by ``samples``: infinite where it diverged, at the end NaN where it isn't finished."""
    facts = source.facts
    assert facts.branch is not None
    accuracy = metric.replace("loss", "acc1")
    epochs = source.epochs(["epoch", metric, accuracy]).sort_values("epoch")
    # Null means not evaluated, and pandas reads a loss that is NaN alike. An accuracy is told by evaluations alone: the
    # branch trained to its end, and its loss has left the numbers.
    loss = epochs[metric].astype(float).mask(epochs[metric].isna() & epochs[accuracy].notna(), math.inf)
    stretches, samples = facts.epochs or 1, int(facts.branch["samples"])
    rows = pd.DataFrame(
        {
            "run": facts.name,
            "batch_size": facts.batch_size,
            "seed": facts.seed,
            "lr": facts.peak_lr,
            "samples": (epochs["epoch"].astype(int) + 1) * samples // stretches,
            "loss": loss,
        }
    )
    if facts.status == "completed" and len(rows):
        return rows.assign(is_last=rows["samples"] == samples)
    end = {"run": facts.name, "batch_size": facts.batch_size, "seed": facts.seed, "lr": facts.peak_lr}
    end |= {"samples": samples, "loss": math.inf if facts.status == "diverged" else math.nan, "is_last": True}
    rows = rows[rows["samples"] < samples].assign(is_last=False)
    return pd.concat([rows, pd.DataFrame([end])], ignore_index=True) if len(rows) else pd.DataFrame([end])
