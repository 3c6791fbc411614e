"""Runs that differ in nothing but their seed share a setting: which those are, and the mean of their curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tvlars_probe.analyses.wording import setting_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvlars_probe.analyses.facts import RunFacts

_FIELDS = ["optimizer", "schedule", "batch_size", "lmbda"]
"""Fields that stand in a setting's label by themselves; the others are named."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: what tells it apart from the other settings, whatever its rate: "LARS, lars-warm, batch 512".
        rate: its peak learning rate; None where it isn't known.
        runs: its runs. A run without a seed is a setting by itself: nobody knows what else it differs in.
        places: where these runs stand among those that were given.
    """

    label: str
    rate: float | None
    runs: tuple[RunFacts, ...]
    places: tuple[int, ...]

    @property
    def optimizer(self) -> str:
        """The class of its optimizer."""
        return self.runs[0].optimizer or "other"

    @property
    def diverged(self) -> bool:
        """Whether every run of it diverged."""
        return all(run.status == "diverged" for run in self.runs)


def settings_of(runs: Sequence[RunFacts]) -> list[Setting]:
    """The settings of these runs, in the order of their first ones."""
    if not runs:
        return []
    frame = pd.DataFrame([{**{name: getattr(f, name) for name in _FIELDS}, "settings": f.settings} for f in runs])
    frame["schedule"] = frame["schedule"].fillna("none")
    labels = [_label(row, frame) for row in frame.assign(further=settings_apart(frame, _FIELDS)).to_dict("records")]
    places: dict[tuple[object, ...], list[int]] = {}
    for place, (facts, label) in enumerate(zip(runs, labels, strict=True)):
        own = facts.name if facts.seed is None else None
        places.setdefault((label, facts.peak_lr, own), []).append(place)
    return [
        Setting(str(label), rate, tuple(runs[place] for place in own), tuple(own))  # type: ignore[arg-type]
        for (label, rate, _), own in places.items()
    ]


def representative(setting: Setting, accuracies: Sequence[float | None]) -> int:
    """The place of the run that stands for its setting: of median accuracy, the lower one of two in the middle.

    Runs that were completed go before others, and runs with an accuracy before those without.

    Args:
        setting: the setting.
        accuracies: of all runs among which `Setting.places` count.
    """
    done = [place for run, place in zip(setting.runs, setting.places, strict=True) if run.status == "completed"]
    told = [(value, place) for place in done or setting.places if (value := accuracies[place]) is not None]
    return sorted(told)[(len(told) - 1) // 2][1] if told else (done or list(setting.places))[0]


def settings_apart(runs: pd.DataFrame, fields: Sequence[str]) -> pd.Series[Any]:
    """Label each run with the settings in which the runs of its cell differ.

    Learning rate and seed don't count. The label is empty where the runs differ in nothing else.

    Args:
        runs: the columns ``fields``, and ``settings`` (`RunFacts.settings`).
        fields: those that runs of one cell agree in.
    """
    labels = dict.fromkeys(runs.index, "")
    for _, cell in runs.groupby(list(fields), dropna=False):
        told = [
            {name: None if value is None else setting_text(value) for name, value in run.items() if name not in fields}
            for run in cell["settings"]
        ]
        names = dict.fromkeys(name for run in told for name in run)
        varying = [name for name in names if len({run.get(name) for run in told}) > 1]
        for index, run in zip(cell.index, told, strict=True):
            labels[index] = ", ".join(f"{name.rpartition('.')[2]} {setting_text(run.get(name))}" for name in varying)
    return pd.Series(labels, dtype=object)


def _label(row: dict[Any, Any], runs: pd.DataFrame) -> str:
    """Optimizer and schedule; λ and batch where they vary; and what else the runs of such a cell differ in."""
    parts = [
        str(row["optimizer"]) if pd.notna(row["optimizer"]) else "other",
        "" if row["schedule"] == "none" else str(row["schedule"]),
    ]
    if pd.notna(row["lmbda"]) and runs["lmbda"].nunique() > 1:
        parts.append(f"λ {row['lmbda']:.12g}")
    if pd.notna(row["batch_size"]) and runs["batch_size"].nunique() > 1:
        parts.append(f"batch {row['batch_size']:.0f}")
    return ", ".join(part for part in (*parts, row["further"]) if part)


def over_seeds(setting: Setting, curves: Sequence[pd.DataFrame], x: str, *, geometric: bool = False) -> pd.DataFrame:
    """The mean curve of a setting's runs, and what lies around it.

    Runs that diverged count where all of them did; beside others they would pull the mean along until they end. Runs of
    one seed repeat each other, and count as one. The run that reaches furthest has the points; a point of another run
    that it hasn't is joined with the one before it.

    Args:
        setting: the setting.
        curves: of each of its runs the columns ``x`` and ``value``, and ``low`` and ``high`` where a row stands for
            several steps. Rows whose ``value`` is NaN are left out.
        x: name of the column along which the curves run, ascending.
        geometric: whether the mean is that of logarithms, as on a logarithmic axis. Values of zero and below it make
            it zero.

    Returns:
        a row per point: ``x``, ``value`` (the mean), ``low`` and ``high`` (the lowest and the highest of any run),
        and ``seeds``, of which the mean is.
    """
    kept = [
        curve.dropna(subset="value").assign(seed=place if run.seed is None else run.seed)
        for place, (run, curve) in enumerate(zip(setting.runs, curves, strict=True))
        if setting.diverged or run.status != "diverged"
    ]
    told = [curve for curve in kept if len(curve)]
    if not told:
        return pd.DataFrame(columns=[x, "value", "low", "high", "seeds"])
    # All runs of some length have as many bins: the one that reaches furthest has room for the points of all.
    grid = max(told, key=lambda curve: (curve[x].iloc[-1], len(curve)))[x].to_numpy()
    rows = pd.concat(
        [
            curve.assign(**{x: grid[np.searchsorted(grid, curve[x].to_numpy(), side="right").clip(1) - 1]})
            for curve in told
        ],
        ignore_index=True,
    )
    rows = rows.assign(low=rows.get("low", rows["value"]), high=rows.get("high", rows["value"]))
    with np.errstate(divide="ignore"):
        rows["mean"] = np.log(rows["value"].astype(float).clip(lower=0)) if geometric else rows["value"].astype(float)
    by_seed = rows.groupby([x, "seed"], sort=True)["mean"].mean().groupby(level=x)
    means, ends = by_seed.mean(), rows.groupby(x, sort=True)
    return pd.DataFrame(
        {
            "value": np.exp(means) if geometric else means,
            "low": ends["low"].min(),
            "high": ends["high"].max(),
            "seeds": by_seed.size(),
        }
    ).reset_index()
