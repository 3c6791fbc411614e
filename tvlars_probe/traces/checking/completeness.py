"""Checks that the tables hold what the manifest says: every step, and the layers and epochs that belong to them."""

from __future__ import annotations

import itertools
import re
import shlex
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.traces.checking.faults import Fault
from tvlars_probe.traces.checking.tables import steps_of
from tvlars_probe.traces.datasets import distinct
from tvlars_probe.traces.gaps import Stretch, holes
from tvlars_probe.traces.manifest import FILE_NAME
from tvlars_probe.traces.run_directory import status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from tvlars_probe.traces.checking.faults import Findings
    from tvlars_probe.traces.checking.tables import Steps
    from tvlars_probe.traces.manifest import Manifest

_CUT = re.compile(r"from-(\d{1,18})-\w+")
"""Name of a folder into which a cut moved rows; its number is that of the steps kept."""

MOST_STRETCHES = 1000
"""Most stretches of missing steps that are told one by one, of each table."""


def check_completeness(run: Path, manifest: Manifest, tables: dict[str, list[pa.Table]], found: Findings) -> None:
    """Check that no step is missing, and that the manifest and the trace agree.

    Args:
        run: the run directory.
        manifest: the run's manifest.
        tables: per table, the rows of its readable parts, as `check_table` gives them.
        found: gets the faults and notes.
    """
    steps = steps_of(tables.get("steps", []))
    found.faults += _some(_gaps(manifest, steps))
    state = status(run, manifest)
    if state == "running":
        found.notes.append("the run is being written by another process")
    if state == "killed":
        remedy = f"the same command, or tvlars-probe train --resume {shlex.quote(str(run))}, continues it"
        if not manifest.is_of_train:
            remedy = "its own loop continues it, by record(..., resume=) with a state that rec.state_dict() gave"
        found.notes.append(f"the run was killed; {remedy}")
    gaps = [gap for gap in manifest.gaps if gap.table == "steps"]
    total, there = manifest.total_steps, len(steps)
    if state == "completed" and total is not None and there + sum(gap.length(total) for gap in gaps) < total:
        what = f"says completed, but {there} of {total} steps are there"
        found.faults.append(_missing(FILE_NAME, what, "steps", int(steps[-1]) + 1 if there else 0, total - 1))
    ended = _last_saved(manifest)
    last_step = int(steps[-1]) if there else -1
    cuts = [int(m[1]) for folder in (run / "aside").glob("from-*") if (m := _CUT.fullmatch(folder.name))]
    # A run may have been killed after a cut, before its manifest said so.
    ended = min([ended, *(cut - 1 for cut in cuts if cut > last_step)])
    # The two ends stand for the stretch between: a manifest may name a step so far that no array holds them all.
    beyond = _uncovered(np.array([last_step + 1, ended]), manifest, "steps") if ended > last_step else steps[:0]
    if state != "running" and len(beyond):
        last = f"the last one is {last_step}" if there else "none is there"
        what = f"says that step {ended} is recorded; {last}"
        found.faults.append(_missing(FILE_NAME, what, "steps", last_step + 1, ended))
    # While a run is written, parts may be merged after they were listed, and their rows aren't seen.
    if state != "running":
        found.faults += _some(_absent_layers(manifest, tables, ended))
        found.faults += _some(_absent_epochs(manifest, tables, min(ended, last_step) + (state == "completed")))
    names = {str(entry.get("name")) for entries in manifest.parameters.values() for entry in entries}
    recorded = {str(name) for rows in tables.get("layers", []) for name in rows["parameter"].unique().to_pylist()}
    if names and recorded - names:
        strange = ", ".join(sorted(recorded - names)[:5])
        found.faults.append(Fault(FILE_NAME, f"doesn't know the recorded tensors {strange}"))


def _last_saved(manifest: Manifest) -> int:
    """The last step of which the manifest says that all tables have its rows; -1 if there is none."""
    # A segment without a last step has recorded nothing: what counts are the steps before it.
    segment = manifest.segments[-1] if manifest.segments else {}
    last = segment.get("last_step")
    return int(segment.get("first_step") or 0) - 1 if last is None else int(last)


def _uncovered(steps: Steps, manifest: Manifest, table: str) -> Steps:
    """The steps of ``steps`` that lie in no gap which the manifest notes for the table."""
    for gap in (gap for gap in manifest.gaps if gap.table == table):
        steps = steps[(steps < gap.first_step) | (steps > gap.end)]
    return steps


def _absent_layers(manifest: Manifest, tables: dict[str, list[pa.Table]], ended: int) -> Iterator[Fault]:
    """Steps in which layers were recorded, and of which the table ``layers`` has no row."""
    # Norms stand in the table steps exactly where layers were recorded. Steps after the last save are left out: a flush
    # writes one table after the other, and may have been killed in between.
    rows = [np.asarray(rows["step"])[~np.asarray(rows["grad_norm"].is_null())] for rows in tables.get("steps", [])]
    recorded = distinct(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)
    recorded = recorded[recorded <= ended]
    absent = _uncovered(
        np.setdiff1d(recorded, steps_of(tables.get("layers", [])), assume_unique=True), manifest, "layers"
    )
    if len(absent):
        # If layers are recorded in every tenth step, say, neighbours are ten apart: they are told as one stretch.
        places = np.searchsorted(recorded, absent)
        for stretch in np.split(absent, np.flatnonzero(np.diff(places) > 1) + 1):
            yield _absent("layers", int(stretch[0]), int(stretch[-1]))


def _absent_epochs(manifest: Manifest, tables: dict[str, list[pa.Table]], ended: int) -> Iterator[Fault]:
    """Epochs that have no row although training went on after them, or was completed with them."""
    if not manifest.is_of_train:
        return  # a loop of the user's need not tell of epochs
    recorded = steps_of(tables.get("epochs", []))
    gaps = [gap for gap in manifest.gaps if gap.table == "epochs"]
    for phase in manifest.phases:
        first, epochs, length = (phase.get(name) for name in ("first_step", "epochs", "steps_per_epoch"))
        if not (isinstance(first, int) and isinstance(epochs, int) and isinstance(length, int) and length > 0):
            continue
        # An epoch counts once a step follows it: a run may be killed between its last step and its row.
        count = min(epochs, max(0, (ended - first) // length))
        # Stretches of epochs, counted from 0: a manifest may claim so many that no array holds them.
        made = recorded[recorded > first] - first
        there = [(epoch, epoch) for epoch in (made[made % length == 0] // length - 1).tolist()]
        there += [(-((first - gap.first_step) // length) - 1, (gap.end - first) // length - 1) for gap in gaps]
        for low, high in holes(there, 0, count - 1):
            start, end = (first + (epoch + 1) * length for epoch in (low, high))
            one = f"the epoch that ended after {start} updates is missing"
            what = one if low == high else f"the epochs that ended after {start} to {end} updates are missing"
            yield _missing("trace/epochs", what, "epochs", start, end)


def _absent(table: str, first: int, last: int) -> Fault:
    what = f"step {first} is missing" if first == last else f"steps {first} to {last} are missing"
    return _missing(f"trace/{table}", what, table, first, last)


def _missing(path: str, what: str, table: str, first: int, last: int) -> Fault:
    return Fault(path, what, "note the gap", Stretch(table, first, last))


def _gaps(manifest: Manifest, steps: Steps) -> Iterator[Fault]:
    """Stretches of missing steps of which the manifest notes no gap."""
    known = _joined((gap.first_step, gap.end) for gap in manifest.gaps if gap.table == "steps")
    starts, ends = [start for start, _ in known], [end for _, end in known]
    # Only the ends of holes are looked at: a hole before a far step has more steps than an array holds.
    before = np.concatenate(([-1], steps[:-1])) if len(steps) else steps
    for place in np.flatnonzero(steps != before + 1):
        first, last = int(before[place]) + 1, int(steps[place]) - 1
        # The known gaps that reach into the hole: there may be as many gaps as holes.
        within = known[bisect_left(ends, first) : bisect_right(starts, last)]
        for low, high in holes(within, first, last):
            yield _absent("steps", low, high)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same steps in spans that neither overlap nor touch, in order."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def _some(faults: Iterator[Fault]) -> Iterator[Fault]:
    """The first `MOST_STRETCHES` of these faults: with a gap for each of a million no manifest could be read again."""
    yield from itertools.islice(faults, MOST_STRETCHES)
    if (further := next(faults, None)) is not None:
        from_step = "" if further.gap is None else f" from step {further.gap.first_step} on"
        yield Fault(further.path, f"further stretches are missing{from_step}: more than {MOST_STRETCHES:,} in all")
