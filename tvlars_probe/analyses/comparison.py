"""How do settings compare? Each stands at its best learning rate, with the mean and its interval over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.answered import Answered
from tvlars_probe.analyses.apart import SettingMeans
from tvlars_probe.analyses.comparison_verdict import cell_text, plain_number, verdict_of
from tvlars_probe.analyses.held_out_choice import Optimism, optimism_of_choice
from tvlars_probe.analyses.intervals import Mean
from tvlars_probe.analyses.settings import settings_apart
from tvlars_probe.analyses.wording import counted
from tvlars_probe.displays.displayed import ShownTable
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.verdict import Verdict

METRICS = (
    "test_acc1", "test_acc5", "test_loss", "val_acc1", "val_acc5", "val_loss", "train_acc1", "train_loss",
    "train_eval_acc1", "train_eval_loss",
)  # fmt: skip
"""Columns of the table ``epochs`` that can be compared."""

FIELDS = ("optimizer", "schedule", "batch_size", "lmbda", "data", "model", "peak_lr", "lr")
"""Fields that can make the rows and columns of a comparison."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Answered):
    """Cells of settings side by side. A cell holds the runs that agree in the fields of its row and column.

    Attributes:
        verdict: the best cell, if it is apart from each of the others.
        metric: the column of ``epochs`` that is compared, at the last epoch that has it.
        chosen_on: the metric by which each cell's learning rate was chosen.
        target: test accuracy in percent for ``epochs_to_target``; None leaves that empty.
        rows: fields that make the rows; ``settings`` is added where it tells cells apart.
        columns: fields that make the columns.
        runs: a row per run.
        rates: a row per cell and peak learning rate: ``mean`` of the metric, its ``standard_error`` and the
            ``half_width`` of its interval over ``seeds`` different seeds, and the numbers of runs ``diverged`` and
            ``unfinished``.
        table: a row per cell, the best first, at its best peak learning rate: ``mean``, ``half_width`` and the median
            ``epochs_to_target`` at that rate, of whose runs ``diverged_there`` diverged; ``diverged``, ``unfinished``
            and ``runs`` count all its ``rates``. ``optimism`` is by how much the choice of the rate makes the mean too
            good, and ``optimism_source`` how that is known (`Optimism`). The 95 % interval from ``low`` to ``high`` is
            that of the mean, reaching further by the optimism on the side of worse values. ``gap`` and what follows
            set the best cell apart from each (`SettingMeans.against_leader`).
    """

    verdict: Verdict
    metric: str
    chosen_on: str
    target: float | None
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    runs: pd.DataFrame
    rates: pd.DataFrame
    table: pd.DataFrame

    @property
    def _of(self) -> str:
        return counted(len(self.runs), "run")

    def _tables(self) -> Iterable[ShownTable]:
        fields = {name: name.replace("_", " ") for name in (*self.rows, *self.columns)}
        told = headings.COMPARISON | {"mean": self.metric}
        yield ShownTable.of_frame(self.table, fields | told, "Settings, each at its best learning rate")

    def pivot(self) -> pd.DataFrame:
        """The table as papers print it: rows by columns, each cell a mean with its interval."""
        cells = [cell_text(row) for _, row in self.table.iterrows()]
        fields = [*self.rows, *self.columns]
        # pivot_table would drop a cell that has NaN among its keys.
        told = self.table[fields].astype(object).where(self.table[fields].notna(), "–")
        text = told.map(plain_number).assign(cell=cells)
        if not self.columns:
            return text.set_index(list(self.rows))[["cell"]].rename(columns={"cell": self.metric})
        # pivot_table rather than pivot, for ``fill_value``. It must aggregate: joining keeps each cell's one text.
        wide = text.pivot_table(
            index=list(self.rows),
            columns=list(self.columns),
            values="cell",
            aggfunc=" / ".join,
            fill_value="",
            sort=False,
        )
        # Rows stand in the order of the means, columns in that of their values: 8 before 16, as numbers.
        return wide[sorted(wide.columns, key=_in_order)]


def _in_order(key: object) -> tuple[tuple[bool, float, str], ...]:
    """Numbers by size, before texts; ``key`` is a tuple where there are several columns."""
    values = key if isinstance(key, tuple) else (key,)
    return tuple((False, v, "") if isinstance(v, int | float) else (True, 0.0, str(v)) for v in values)


def epoch_columns(metric: str) -> list[str]:
    """The columns of the table ``epochs`` that `run_row` needs for a metric.

    Raises:
        UserError: no such metric.
    """
    if metric not in METRICS:
        raise unknown("--metric", metric, METRICS)
    return [*dict.fromkeys(("epoch", "test_acc1", metric, _on("test", metric), _on("val", metric)))]


def _on(split: str, metric: str) -> str:
    """The metric on that split, where it is one of held-out or test data; of training data the metric itself."""
    home, _, figure = metric.partition("_")
    return f"{split}_{figure}" if home in ("val", "test") else metric


def run_row(facts: RunFacts, epochs: pd.DataFrame, *, metric: str, target: float | None) -> dict[str, object]:
    """What a comparison needs of one run: its settings, and its figures at the last epoch that has the metric."""
    has_held_out = _on("val", metric) in epochs and bool(epochs[_on("val", metric)].notna().any())
    epochs = epochs[epochs[metric].notna()]
    last = epochs.iloc[-1] if len(epochs) else pd.Series(dtype=float)
    reached = epochs[epochs["test_acc1"] >= target]["epoch"].tolist() if target is not None and len(epochs) else []
    return {
        "run": facts.name,
        "status": facts.status,
        "settings": facts.settings,
        **{name: getattr(facts, name) for name in FIELDS},
        "schedule": facts.schedule or "none",
        "seed": facts.seed,
        "epochs": len(epochs),
        "value": _float(last.get(metric)),
        "test": _float(last.get(_on("test", metric))),
        "val": _float(last.get(_on("val", metric))),
        "held_out": has_held_out,
        # Epochs are numbered from 0: epoch n ends after n + 1 of them.
        "epochs_to_target": float(reached[0]) + 1 if len(reached) else np.nan,
    }


def compare(
    rows_of_runs: Sequence[dict[str, object]],
    *,
    metric: str = "test_acc1",
    rows: Sequence[str] = ("optimizer", "schedule", "lmbda"),
    columns: Sequence[str] = ("batch_size",),
    target: float | None = None,
) -> Comparison:
    """Compare cells of settings, each at its best peak learning rate.

    Where runs of a cell differ in more than learning rate and seed, the field ``settings`` names the difference and
    divides the cell. Runs of one seed count as one.

    The learning rate is chosen on held-out data where every run has some (``--val``), else on the metric itself;
    `Comparison.chosen_on` says which. A mean is over the runs that completed, or over all of them where none did. A
    learning rate at which a run diverged is chosen only if no other has a figure.

    Args:
        rows_of_runs: a row per run, made by `run_row`.
        metric: column of ``epochs``; the lowest loss and the highest accuracy are the best.
        rows: fields whose values make the rows.
        columns: fields whose values make the columns.
        target: test accuracy in percent, for the epochs to reach it.

    Raises:
        UserError: there is no such field, or a field is named twice.
    """
    asked = [*rows, *columns]
    for name in asked:
        if name not in FIELDS:
            raise unknown("field of --rows and --columns", name, FIELDS)
        if asked.count(name) > 1:
            raise UserError(f"--rows and --columns name {name} twice: name each field once")
    runs = pd.DataFrame(list(rows_of_runs))
    rows, columns = (_told(names, runs) for names in (rows, columns))
    rows = rows or ("optimizer",)  # groupby needs a key, also where no run tells any of the fields
    runs["settings"] = settings_apart(runs, [*rows, *columns])
    rows = (*rows, "settings") if any(runs["settings"]) else rows
    cells = [*rows, *columns]
    # A learning rate chosen by test accuracy flatters that accuracy. A training metric has no held-out counterpart:
    # its "val" is the metric itself, hence the test of the name.
    held_out = bool(runs["val"].notna().all()) and metric.startswith(("test_", "val_"))
    runs["choice"] = runs["val"] if held_out else runs["value"]
    sign = -1.0 if metric.endswith("loss") else 1.0
    # dropna=False keeps the runs that don't tell a field, lmbda for one: they are a cell, too.
    rates = pd.DataFrame(
        [
            {**dict(zip([*cells, "rate"], key, strict=True)), **_rate_row(group)}
            for key, group in runs.assign(rate=runs["peak_lr"]).groupby([*cells, "rate"], dropna=False, sort=True)
        ]
    )
    table = pd.DataFrame([_best(group, sign) for _, group in rates.groupby(cells, dropna=False, sort=True)])
    # The leader is in the first row: cells without a mean are sorted last.
    ordered = table.assign(order=-sign * table["mean"]).sort_values("order", kind="stable", ignore_index=True)
    ordered = ordered.drop(columns=["order", *_WORKING]).join(_against_leader(ordered, sign))
    return Comparison(
        verdict=verdict_of(ordered, metric, cells, _held_out_instead(runs, metric)),
        metric=metric,
        chosen_on=metric.replace("test_", "val_") if held_out else metric,
        target=target,
        rows=rows,
        columns=columns,
        runs=runs.drop(columns=["choice", "test", "val", "held_out"]),
        rates=rates.drop(columns=_WORKING),
        table=ordered,
    )


def _held_out_instead(runs: pd.DataFrame, metric: str) -> str | None:
    """The metric of held-out data, where that of test data is on record in no run; None where it is, or neither is.

    Other people's trainers evaluate on held-out data.
    """
    held_out = _on("val", metric)
    return held_out if held_out != metric and runs["value"].isna().all() and runs["held_out"].any() else None


def _told(names: Sequence[str], runs: pd.DataFrame) -> tuple[str, ...]:
    """The fields for which any run has a value."""
    return tuple(name for name in names if runs[name].notna().any())


def _rate_row(group: pd.DataFrame) -> dict[str, object]:
    done = group[group["status"] == "completed"]
    diverged = int((group["status"] == "diverged").sum())
    used = done if len(done) else group  # a run that ended early would pull the mean down
    reached = used["epochs_to_target"].dropna()
    # Runs of one seed repeat each other and are no independent draws; a run without a seed stands for itself.
    who = used["seed"].astype(object).where(used["seed"].notna(), used["run"])
    by_seed = used[["value", "choice"]].astype(float).groupby(who, sort=False).mean()
    mean = Mean.of(by_seed["value"].tolist())
    return {
        "mean": mean.value,
        "half_width": mean.half_width,
        "standard_error": mean.standard_error,
        "seeds": mean.count,
        "diverged": diverged,
        "unfinished": len(group) - len(done) - diverged,
        "runs": len(group),
        "epochs_to_target": float(reached.median()) if len(reached) else np.nan,
        "reached_target": len(reached),
        "choice": Mean.of(by_seed["choice"].tolist()).value,
        "by_seed": by_seed,
    }


_WORKING = ["choice", "by_seed"]
"""Columns of ``rates`` that are only worked with."""


def _best(rates: pd.DataFrame, sign: float) -> dict[str, object]:
    stable = rates[rates["diverged"] == 0]
    eligible = stable if stable["choice"].notna().any() else rates
    # argmax would pick a NaN: a learning rate without a figure must lose.
    scores = (sign * eligible["choice"]).fillna(-np.inf)
    best = eligible.iloc[int(scores.to_numpy().argmax())]
    optimism = _optimism(eligible, sign)
    further = np.nan_to_num(optimism.value)
    worse, better = best["mean"] - sign * (best["half_width"] + further), best["mean"] + sign * best["half_width"]
    return {
        **{str(name): value for name, value in best.items()},
        "low": min(worse, better),
        "high": max(worse, better),
        "optimism": optimism.value,
        "optimism_source": optimism.source,
        "diverged_there": best["diverged"],
        "diverged": int(rates["diverged"].sum()),
        "unfinished": int(rates["unfinished"].sum()),
        "runs": int(rates["runs"].sum()),
        "rates": len(rates),
    }


def _optimism(rates: pd.DataFrame, sign: float) -> Optimism:
    """The optimism of choosing among these rates of one cell; a metric whose lower values are better has sign −1."""
    values, choice = (
        sign * pd.concat([of[name] for of in rates["by_seed"]], axis="columns").to_numpy(float).T
        for name in ("value", "choice")
    )
    return optimism_of_choice(values, choice)


def _against_leader(table: pd.DataFrame, sign: float) -> pd.DataFrame:
    means = sign * table["mean"].to_numpy(float)
    return SettingMeans(
        means=means,
        # Where the optimism is unknown there is one seed, and no interval either.
        held_out=means - np.nan_to_num(table["optimism"].to_numpy(float)),
        errors=table["standard_error"].to_numpy(float),
        seeds=table["seeds"].to_numpy(float),
    ).against_leader()


def _float(value: object) -> float:
    return float("nan") if value is None or pd.isna(value) else float(value)  # type: ignore[arg-type, call-overload]
