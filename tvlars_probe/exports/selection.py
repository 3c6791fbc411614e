"""What is sent of a flush's rows: totals, quantiles over layers, the layers furthest out; within a budget."""

from __future__ import annotations

import collections
import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.exports import names
from tvlars_probe.exports.budget import BUDGET
from tvlars_probe.exports.exporter import Alert, StepScalars
from tvlars_probe.exports.members import MOST_AT_ONCE, Members
from tvlars_probe.live.own_medians import LENGTH, OwnMedians, as_matrices
from tvlars_probe.traces.schema import EPOCHS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    Row = Mapping[str, Any]

MOST_ALERTS = 20
"""Findings of a flush that are sent."""

_FURTHEST = 5
"""How many layers furthest from their own median are looked for in each quantity."""

_METRICS = [column.name for column in EPOCHS.columns if column.type == "float64"]
"""Columns of the table ``epochs`` that are sent."""


class Selection:
    """Chooses what is sent. It is the same while a run trains and afterwards, and keeps in mind what it has sent.

    Args:
        layers: patterns, as `fnmatch` has them, of the tensors of which all figures of all recorded steps are sent,
            beyond the budget.
        budget: scalars of a flush otherwise.
    """

    def __init__(self, layers: Sequence[str] = (), budget: int = BUDGET) -> None:
        self._patterns, self._budget = tuple(layers), budget
        self._matched: dict[str, bool] = {}
        self._members = Members(min(MOST_AT_ONCE, budget // 10))
        self._medians = {quantity: OwnMedians() for quantity in names.QUANTITIES}
        self._apart: dict[str, bool] = {}  # by tensor: whether its figures were left out when it was there last
        self._short: set[str] = set()  # tensors for whose figures the budget was too small
        self._steps = self._sent_steps = self._lost = self._lost_quantiles = self._unsent_alerts = 0

    def choose(self, tables: Mapping[str, pa.Table]) -> list[StepScalars | Alert]:
        """What is sent of a flush, in order of steps.

        Args:
            tables: its rows by table; ``steps``, ``layers``, ``epochs``, ``curvature`` and ``findings`` are looked at.
        """
        clock, chosen = _Clock(tables.get("steps")), _Chosen(self._budget)
        steps = _Steps(tables.get("steps"))
        # The most wanted first: what comes when the budget is used up is left out.
        chosen.add(steps.last)
        for table, figures in (("epochs", _epoch_figures), ("curvature", _curvature_figures)):
            if table in tables:
                self._lost += chosen.add(figures(tables[table]))
        if "layers" in tables:
            self._add_layers(chosen, tables["layers"])
        self._sent_steps += chosen.add_whole(steps.others())
        self._steps += len(steps)
        points = [StepScalars(step, values, clock.at(step)) for step, values in chosen.values.items()]
        alerts = self._alerts(tables.get("findings"), clock)
        # A finding after the values of its step: a tracker's own step has come there by then.
        return sorted([*points, *alerts], key=lambda item: (item.step, isinstance(item, Alert)))

    @property
    def left_out(self) -> str | None:
        """What wasn't sent, and what sends it, in a sentence; None where all of it was."""
        parts = []
        if apart := len({name for name, is_apart in self._apart.items() if is_apart} | self._short):
            parts.append(f"the figures of {apart:,} of {len(self._matched):,} tensors (--layers GLOB sends them)")
        if self._steps > self._sent_steps:
            told = f"the totals of {self._steps - self._sent_steps:,} of {self._steps:,} steps"
            parts.append(f"{told} (a higher --budget sends more)")
        if self._lost:
            parts.append(f"{self._lost:,} figures of epochs and of the curvature (a higher --budget sends them)")
        if self._lost_quantiles:
            parts.append(f"{self._lost_quantiles:,} quantiles over layers (a higher --budget sends them)")
        if self._unsent_alerts:
            parts.append(f"{self._unsent_alerts:,} findings (they are in the trace)")
        return f"left out: {'; '.join(parts)}" if parts else None

    def _add_layers(self, chosen: _Chosen, layers: pa.Table) -> None:
        present = [*map(str, layers["parameter"].unique().to_pylist())]
        for name in present:
            if name not in self._matched:
                self._matched[name] = any(fnmatchcase(name, pattern) for pattern in self._patterns)
        asked = [name for name, matched in self._matched.items() if matched]
        if asked:
            chosen.add_beyond(_all_figures(layers, asked))
        found = _figures_of_layers(_newest(layers))
        far: dict[str, float] = {}
        for quantity, (parameters, figures, _, _) in found.items():
            self._medians[quantity].add(parameters, figures)
            for one in self._medians[quantity].furthest(_FURTHEST):
                far[one.parameter] = max(one.factor, far.get(one.parameter, 1.0))
        for quantity, (_, figures, _, step) in found.items():
            quantiles = _quantiles(quantity, figures[-1])
            self._lost_quantiles += chosen.add((step, name, value) for name, value in quantiles)
        others = [name for name in present if not self._matched[name]]
        self._members.renew(others, {name: factor for name, factor in far.items() if not self._matched[name]})
        for quantity, (parameters, figures, there, step) in found.items():
            places = {name: place for place, name in enumerate(parameters)}
            for name in self._members.names:
                place = places.get(name)
                if place is not None and there[place]:
                    figure = step, names.of_layer(quantity, name), float(figures[-1, place])
                    self._short |= {name} if chosen.add([figure]) else set()
        followed = {*self._members.names}
        self._apart |= {name: name not in followed for name in others}

    def _alerts(self, findings: pa.Table | None, clock: _Clock) -> list[Alert]:
        if findings is None:
            return []
        self._unsent_alerts += max(0, len(findings) - MOST_ALERTS)
        fields = ("step", "rule", "parameter", "value", "threshold", "text")
        rows = findings.slice(0, MOST_ALERTS).select(fields).to_pylist()
        return [Alert(**row | {"text": row["text"] or ""}, time=clock.at(row["step"])) for row in rows]


class _Chosen:
    """The values chosen so far, by step, and what is left of the budget."""

    def __init__(self, budget: int) -> None:
        self.values: dict[int, dict[str, float]] = collections.defaultdict(dict)
        self.room = budget

    def add(self, figures: Iterator[tuple[int, str, float]] | Sequence[tuple[int, str, float]]) -> int:
        """Add figures as long as there is room. Returns how many were refused."""
        refused = 0
        for step, name, value in figures:
            if name in self.values[step]:
                self.values[step][name] = value
            elif self.room > 0:
                self.values[step][name] = value
                self.room -= 1
            else:
                refused += 1
        self._drop_empty()
        return refused

    def add_whole(self, groups: Iterator[list[tuple[int, str, float]]]) -> int:
        """Add groups as long as the next one still has room as a whole. Returns how many were there or were added."""
        added = 0
        for group in groups:
            if sum(name not in self.values.get(step, ()) for step, name, _ in group) > self.room:
                break
            self.add(group)
            added += 1
        return added

    def add_beyond(self, figures: Iterator[tuple[int, str, float]]) -> None:
        for step, name, value in figures:
            self.values[step][name] = value

    def _drop_empty(self) -> None:
        for step in [step for step, values in self.values.items() if not values]:
            del self.values[step]


class _Clock:
    """Wall-clock times of steps."""

    def __init__(self, steps: pa.Table | None) -> None:
        self._steps: Any = np.empty(0, np.int64)
        if steps is not None and "time" in steps.column_names:
            import pyarrow as pa
            import pyarrow.compute as pc

            known = steps.filter(pc.is_valid(steps["time"]))
            self._steps = known["step"].to_numpy()
            self._times = known["time"].cast(pa.int64()).to_numpy() / 1e6 if len(known) else None

    def at(self, step: int) -> float | None:
        """Seconds since 1970 at the end of the step, or of the latest one before it."""
        place = int(np.searchsorted(self._steps, step, side="right")) - 1
        return float(self._times[max(place, 0)]) if len(self._steps) and self._times is not None else None


class _Steps:
    """The totals of a flush's steps."""

    def __init__(self, rows: pa.Table | None) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    @property
    def last(self) -> list[tuple[int, str, float]]:
        return self._at([len(self) - 1])[0] if len(self) else []

    def others(self) -> Iterator[list[tuple[int, str, float]]]:
        """The steps by worth: the last, those of the loss's extremes, then evenly spread ones, finer and finer."""
        if not len(self):
            return
        assert self._rows is not None
        order = [len(self) - 1, *_extremes(self._rows["loss"].to_numpy().astype(float)), *_spread(len(self))]
        order = [*dict.fromkeys(order)]
        for start in range(0, len(order), 64):  # few are taken of many
            yield from (group for group in self._at(order[start : start + 64]) if group)

    def _at(self, places: Sequence[int]) -> list[list[tuple[int, str, float]]]:
        assert self._rows is not None
        there = [column for column in names.STEPS if column in self._rows.column_names]
        return [
            [(row["step"], names.STEPS[name], float(row[name])) for name in there if row[name] is not None]
            for row in self._rows.select(["step", *there]).take(places).to_pylist()
        ]


def _extremes(loss: Any) -> list[int]:
    """Places of the first loss that isn't finite, and of the highest and the lowest finite one."""
    places = [int(np.argmax(~np.isfinite(loss)))] if np.isinf(loss).any() else []
    if np.isfinite(loss).any():
        places += [int(np.nanargmax(np.where(np.isfinite(loss), loss, np.nan)))]
        places += [int(np.nanargmin(np.where(np.isfinite(loss), loss, np.nan)))]
    return places


def _spread(count: int) -> Iterator[int]:
    """Places 0 to count − 1, so that the first ones of any number are spread evenly: halves, quarters, eighths, ..."""
    stride = 1 << max(0, math.ceil(math.log2(max(count, 1))))
    yield 0
    while stride > 1:
        yield from range(stride // 2, count, stride)
        stride //= 2


def _newest(layers: pa.Table) -> pa.Table:
    """The rows of the last recorded steps, as many as medians are taken of."""
    import pyarrow.compute as pc

    steps = np.unique(layers["step"].to_numpy())
    return layers if len(steps) <= LENGTH else layers.filter(pc.field("step") >= int(steps[-LENGTH]))


def _figures_of_layers(layers: pa.Table) -> dict[str, tuple[list[str], Any, Any, int]]:
    """Of each quantity that is there: the tensors' names, the matrix of steps and tensors, which tensors have a figure
    in its last step, and that step. Later steps, in which fewer tensors have one, are left out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = ["trust_ratio", "grad_norm", "weight_norm", "update_norm"]
    columns = [name for name in wanted if name in layers.schema.names]
    rows = layers.select(["step", "parameter", *columns])
    for column in columns:  # a figure that is NaN is one, a null isn't
        rows = rows.append_column(f"has {column}", pc.cast(pc.is_valid(rows[column]), pa.float32()))
    steps, parameters, matrices = as_matrices(rows, [*columns, *(f"has {column}" for column in columns)])
    there: dict[str, Any] = {column: matrices[f"has {column}"] == 1 for column in columns}
    if "update_norm" in columns and "weight_norm" in columns:
        with np.errstate(divide="ignore", invalid="ignore"):
            matrices[names.RATIO] = matrices["update_norm"] / matrices["weight_norm"]
        there[names.RATIO] = there["update_norm"] & there["weight_norm"]
    found = {}
    for quantity in names.QUANTITIES:
        if quantity in there and there[quantity].any():
            counts = there[quantity].sum(1)
            # ‖Δw‖ of large tensors is there in one recorded step of ten: the others would tell of small ones alone.
            last = len(counts) - 1 - int(np.argmax(counts[::-1]))
            found[quantity] = (parameters, matrices[quantity][: last + 1], there[quantity][last], int(steps[last]))
    return found


def _quantiles(quantity: str, figures: Any) -> Iterator[tuple[str, float]]:
    """Over the layers whose figure is a number."""
    known = figures[~np.isnan(figures)]
    if len(known):
        with np.errstate(invalid="ignore"):
            values = np.quantile(known, [*names.QUANTILES.values()])
        for name, value in zip(names.QUANTILES, values.tolist(), strict=True):
            yield names.of_quantile(quantity, name), value


def _all_figures(layers: pa.Table, asked: Sequence[str]) -> Iterator[tuple[int, str, float]]:
    """All figures of some tensors in all recorded steps."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = layers.filter(pc.is_in(layers["parameter"].cast(pa.string()), pa.array(asked, pa.string())))
    columns = [column for column in names.LAYERS if column in rows.column_names]
    for row in rows.select(["step", "parameter", *columns]).to_pylist():
        step, parameter = row["step"], row["parameter"]
        for column in columns:
            if row[column] is not None:
                yield step, names.of_layer(column, parameter), row[column]
        update, weight = row.get("update_norm"), row.get("weight_norm")
        if update is not None and weight is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                yield step, names.of_layer(names.RATIO, parameter), float(np.float64(update) / np.float64(weight))


def _epoch_figures(rows: pa.Table) -> Iterator[tuple[int, str, float]]:
    there = [name for name in _METRICS if name in rows.column_names]
    for row in reversed(rows.select(["step", *there]).to_pylist()):
        yield from ((row["step"], names.of_epoch(name), row[name]) for name in there if row[name] is not None)


def _curvature_figures(rows: pa.Table) -> Iterator[tuple[int, str, float]]:
    """In order of importance: of the whole model before those of layers, the latest step first."""
    listed = rows.to_pylist()
    listed.sort(key=lambda row: (row.get("scope") not in (None, "all"), -row["step"]))
    for row in listed:
        for column in ("value", "limit"):
            if row.get(column) is not None:
                yield row["step"], names.of_curvature(row, column), row[column]
