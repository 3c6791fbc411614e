"""The export of a run that is on disk: the same selection, window by window, so that rows are never all in memory."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.errors import UserError
from tvlars_probe.exports.exporter import Alert, PreparesStore, RefusesExisting
from tvlars_probe.exports.live import facts_of
from tvlars_probe.exports.names import LAYERS, RATIO, STEPS
from tvlars_probe.exports.selection import Selection
from tvlars_probe.live.own_medians import LENGTH
from tvlars_probe.traces.datasets import by_step, distinct
from tvlars_probe.traces.run_directory import is_led_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from tvlars_probe.exports.settings import Export
    from tvlars_probe.traces.reader import Trace

SUFFIX = "-export"
"""What stands behind the run's id and its folder: an export made while the run trained isn't touched."""

MOST_WINDOWS = 100
"""Stretches of steps, each of which has the budget of a flush."""

MOST_ROWS = 1 << 21
"""Rows of the table ``layers`` that are in memory at once, or those of one window."""

_COLUMNS = [column for column in LAYERS if column != RATIO]


def export_trace(trace: Trace, export: Export, progress: Callable[[int, int], None]) -> tuple[int, str | None]:
    """Send a recorded run to a tracker.

    Args:
        trace: the run, in any state.
        export: the tracker and what it is sent.
        progress: called with the number of windows sent, and of all.

    Returns:
        the number of scalars sent, and what was left out.

    Raises:
        UserError: the run was exported before, holds no step, or the tracker fails.
        TraceError: the trace is damaged.
    """
    exporter, sent = export.open(), 0
    facts = facts_of(export, trace.path, trace.manifest, suffix=SUFFIX)
    if export.folder is None and is_led_out(trace.path, facts.folder):
        raise UserError(f"{facts.folder} is, or lies below, a link that leads out of the run: remove it, or give --out")
    if isinstance(exporter, RefusesExisting):
        exporter.refuse_existing(facts)
    windows = _windows(trace)
    if not windows:
        raise UserError(f"{trace.path} holds no step yet: there is nothing to export")
    selection = Selection(export.layers, export.budget)
    try:
        if isinstance(exporter, PreparesStore):
            exporter.prepare(facts)
        exporter.begin(facts)
        for index, tables in enumerate(_tables(trace, windows, export)):
            for item in selection.choose(tables):
                if isinstance(item, Alert):
                    exporter.alert(item)
                else:
                    exporter.scalars(item)
                    sent += len(item.values)
            exporter.flush()
            progress(index + 1, len(windows))
        if (left_out := selection.left_out) is not None:
            exporter.note(left_out)
        exporter.end(trace.status)
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{export.name} failed: {type(error).__name__}: {first}") from error
    return sent, left_out


def _windows(trace: Trace) -> list[tuple[int, int]]:
    """The first and the last step of each window. The last one has no end: an epoch's row comes after its updates. The
    first one begins with step 0: where parts of ``steps`` were lost, the other tables have rows of earlier steps.
    """
    steps = _distinct_steps(trace, "steps")
    if not len(steps):
        return []
    parts = np.array_split(steps, min(MOST_WINDOWS, len(steps)))
    starts = [0, *(int(part[0]) for part in parts[1:])]
    return [*zip(starts, [*(start - 1 for start in starts[1:]), 1 << 62], strict=True)]


def _distinct_steps(trace: Trace, table: str) -> NDArray[np.int64]:
    """The steps of a table, each once and in order."""

    def gather(batches: Iterator[pa.RecordBatch]) -> NDArray[np.int64]:
        found, waiting, rows = np.empty(0, np.int64), list[Any](), 0
        for batch in batches:
            waiting.append(batch.column("step").to_numpy())
            rows += len(batch)
            if rows > MOST_ROWS:
                found, waiting, rows = distinct(np.concatenate([found, *waiting])), [], 0
        return distinct(np.concatenate([found, *waiting]))

    return trace.batches(table, ["step"], gather)


def _tables(trace: Trace, windows: Sequence[tuple[int, int]], export: Export) -> Iterator[dict[str, pa.Table]]:
    """The rows of each window, by table."""
    import pyarrow.compute as pc

    short = {table: _all_rows(trace, table) for table in ("epochs", "curvature", "findings")}
    recorded = _distinct_steps(trace, "layers")
    a_step = trace.count_rows("layers") / max(len(recorded), 1)
    for group in _groups(windows, recorded, a_step, asks=bool(export.layers)):
        layers = _layers(trace, group, recorded, export.layers)
        for first, last in group:
            within = (pc.field("step") >= first) & (pc.field("step") <= last)
            tables = {name: rows.filter(within) for name, rows in short.items()}
            tables["steps"] = _all_rows(trace, "steps", (first, last))
            tables["layers"] = by_step(layers.filter(within))
            yield {name: rows for name, rows in tables.items() if len(rows)}


def _all_rows(trace: Trace, table: str, steps: tuple[int, int] | None = None) -> pa.Table:
    import pyarrow as pa

    from tvlars_probe.traces.schema import table as schema_of

    wanted = ["step", "time", *STEPS] if table == "steps" else [c for c in schema_of(table).names if c != "run"]
    schema = schema_of(table).arrow_schema().empty_table().select(wanted).schema
    rows = trace.batches(table, wanted, lambda batches: pa.Table.from_batches([*batches], schema), steps=steps)
    return rows.unify_dictionaries()


def _groups(
    windows: Sequence[tuple[int, int]], recorded: NDArray[np.int64], a_step: float, *, asks: bool
) -> Iterator[list[tuple[int, int]]]:
    """Consecutive windows whose rows are read together: a finished run's layers are in order of parameters, so that
    each reading goes through all of them.
    """
    group, rows = list[tuple[int, int]](), 0.0
    for first, last in windows:
        steps = int(np.searchsorted(recorded, last, side="right") - np.searchsorted(recorded, first))
        # Which tensors are asked for by name is known only later: as if all were.
        more = a_step * (steps if asks else min(steps, LENGTH))
        if group and rows + more > MOST_ROWS:
            yield group
            group, rows = [], 0.0
        group.append((first, last))
        rows += more
    if group:
        yield group


def _layers(
    trace: Trace, group: Sequence[tuple[int, int]], recorded: NDArray[np.int64], patterns: Sequence[str]
) -> pa.Table:
    """Of the last recorded steps of each window all tensors; of the others those that were asked for."""
    import pyarrow as pa

    from tvlars_probe.traces.schema import LAYERS as TABLE

    steps = [recorded[(recorded >= first) & (recorded <= last)][-LENGTH:] for first, last in group]
    wanted = np.concatenate([np.empty(0, np.int64), *steps])
    columns = ["step", "parameter", *_COLUMNS]

    def keep(batches: Iterator[pa.RecordBatch]) -> pa.Table:
        kept = []
        for batch in batches:
            chosen = np.isin(batch.column("step").to_numpy(), wanted)
            names: Any = batch.column("parameter")
            if patterns:
                asked = [any(fnmatchcase(name, one) for one in patterns) for name in names.dictionary.to_pylist()]
                chosen |= np.array(asked, bool)[names.indices.to_numpy()]
            kept.append(batch.filter(pa.array(chosen)))
        return pa.Table.from_batches(kept, TABLE.arrow_schema().empty_table().select(columns).schema)

    rows = trace.batches("layers", columns, keep, steps=(group[0][0], group[-1][1]))
    return rows.unify_dictionaries().combine_chunks()
