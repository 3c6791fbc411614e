"""Is a run's directory whole? What of it can be told without torch: manifest, parts, steps, leftovers.

Everything is read and nothing is changed. What may be set aside, `tvlars_probe.traces.repairing` sets aside.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tvlars_probe.errors import LaterVersionError, RunDirectoryError, TraceError, UnreadableError
from tvlars_probe.traces.footers import check_footer, refuse_unreadable, rows_in_memory
from tvlars_probe.traces.manifest import FILE_NAME, STATUSES, Manifest
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.repairing import run_ids
from tvlars_probe.traces.run_directory import FIXED, LOCK_NAME, is_led_out, status
from tvlars_probe.traces.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from tvlars_probe.traces.parts import Part

Repair = Literal["set aside", "write anew", "note the gap"]
Steps = np.ndarray[tuple[int], np.dtype[np.int64]]
ROW_KEYS = {"steps": ("step",), "layers": ("step", "parameter"), "epochs": ("phase", "epoch")}
"""Per table what no two rows share."""

_FOLDERS = ("trace", "checkpoints", "aside", "sharpness", "landscape", *(f"trace/{table}" for table in TABLES))
_CUT = re.compile(r"from-(\d{1,18})-\w+")
"""A folder of rows set aside when a run was cut back to so many steps."""

_BATCH_ROWS = 1 << 17
_ROW_BYTES = 24
"""Of the columns that are kept of a row."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a run.

    Attributes:
        path: the file or folder, below the run.
        problem: what is wrong.
        repair: what ``--repair`` does about it; None where it can't do anything.
        gap: what is missing where the gap can be noted: table, first_step, last_step.
    """

    path: str
    problem: str
    repair: Repair | None = None
    gap: dict[str, Any] | None = None


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        faults: what is wrong.
        notes: what a reader should know though nothing is wrong.
        parts: readable parts.
        steps: rows of the table ``steps``.
        checkpoints: loadable ones.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: int = 0
    steps: int = 0
    checkpoints: int = 0


def problem(error: Exception) -> str:
    """What an error says is wrong, without the advice to run a check."""
    return re.split(r"[:;,] 'tvlars-probe check", str(error))[0]


def check_trace(run: Path) -> Findings:
    """Check everything but the checkpoints.

    Raises:
        UnreadableError: the system refuses to read one of its files.
        RunDirectoryError: there is nothing like a run at ``run``.
    """
    if not run.is_dir():
        raise RunDirectoryError(f"there is no run at {run}")
    if not (run / FILE_NAME).exists() and not any((run / name).is_dir() for name in ("trace", "checkpoints")):
        raise RunDirectoryError(f"{run} is not a run directory: it has no {FILE_NAME}")
    found = Findings()
    manifest = _check_manifest(run, found)
    found.faults += _strange_files(run)
    found.faults += _files_for_folders(run)
    tables = {folder.name: _check_table(run, folder, manifest, found) for folder in _table_folders(run)}
    found.steps = len(_steps(tables.get("steps", [])))
    if manifest is not None:
        _check_truth(run, manifest, tables, found)
    return found


def _check_manifest(run: Path, found: Findings) -> Manifest | None:
    try:
        manifest = Manifest.load(run)
    except UnreadableError:
        raise
    except RunDirectoryError as error:
        repair: Repair | None = None if isinstance(error, LaterVersionError) else "write anew"
        found.faults.append(Fault(FILE_NAME, problem(error), repair))
        return None
    if manifest.status not in STATUSES:
        found.faults.append(Fault(FILE_NAME, f"its status is {manifest.status!r} (known: {', '.join(STATUSES)})"))
    ids = run_ids(run)
    if len(ids) > 1 and len({*ids}) == 1 and manifest.run_id not in ids:
        what = f"is of the run {manifest.run_id}, and all parts of the trace are of {ids[0]}"
        found.faults.append(Fault(FILE_NAME, what, "write anew"))
        return None
    found.notes += manifest.notes
    for gap in manifest.gaps:
        span = f"steps {gap.get('first_step')} to {gap.get('last_step', 'the end')}"
        found.notes.append(f"{gap.get('table')} lacks {span}: {gap.get('reason')}")
    return manifest


def _strange_files(run: Path) -> Iterator[Fault]:
    """Links, and what killed processes left half done."""
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if name.startswith("aside/"):
            continue
        if path.is_symlink():
            repair: Repair | None = None if name in FIXED else "set aside"
            yield Fault(name, "is a link: what belongs to a run lies inside it", repair)
        elif path.name.startswith(".") and (
            path.name.endswith(".tmp") or "-compact-" in path.name or "-split-" in path.name
        ):
            yield Fault(name, "was left half done by a process that was killed; no reader looks at it", "set aside")


def _files_for_folders(run: Path) -> Iterator[Fault]:
    """Files where folders should be, and a lock that can't be locked."""
    for name in _FOLDERS:
        path = run / name
        if not is_led_out(run, path) and path.exists() and not path.is_dir():
            yield Fault(name, "is no folder", None if name in FIXED else "set aside")
    lock = run / LOCK_NAME
    if lock.exists() and not lock.is_symlink() and not lock.is_file():
        yield Fault(LOCK_NAME, "is no plain file, so the run can't be locked: remove it")


def _table_folders(run: Path) -> list[Path]:
    folders = [run / home / table for home in ("trace", "sharpness", ".") for table in TABLES]
    return [folder for folder in folders if folder.is_dir() and not is_led_out(run, folder)]


def _check_table(run: Path, folder: Path, manifest: Manifest | None, found: Findings) -> list[pa.Table]:
    """The rows of a table's readable parts, of the columns that tell rows apart."""
    rows = []
    spans: list[tuple[Part, Steps]] = []
    most = _most_rows(folder, manifest)
    for part in list_parts(folder):
        if part.path.is_symlink():
            continue
        try:
            read = _read(part, folder.name, manifest, most)
        except FileNotFoundError:
            continue  # merged into another meanwhile
        except UnreadableError:
            raise
        except TraceError as error:
            repair: Repair | None = None if isinstance(error, LaterVersionError) else "set aside"
            found.faults.append(Fault(part.path.relative_to(run).as_posix(), problem(error), repair))
            continue
        found.parts += 1
        rows.append(read)
        most -= len(read)
        spans.append((part, np.unique(np.asarray(read["step"]))))
    if folder.parent.name == "trace" and folder.name in ROW_KEYS:
        found.faults += _doubles(run, folder, rows, spans)
    return rows


def _most_rows(folder: Path, manifest: Manifest | None) -> int:
    """More rows than the run's parts of a table can hold together, each of them twice."""
    if manifest is None or manifest.total_steps is None or folder.parent.name != "trace":
        return rows_in_memory(_ROW_BYTES)
    tensors = sum(len(entries) for entries in manifest.parameters.values())
    per_step = {"steps": 1, "epochs": 1, "layers": tensors}.get(folder.name, 0)
    return 2 * per_step * (manifest.total_steps + 1) or rows_in_memory(_ROW_BYTES)


def _read(part: Part, table: str, manifest: Manifest | None, most: int) -> pa.Table:
    """A part's rows, of the columns that are compared; the others are decoded too, some rows at a time.

    Raises:
        TraceError: it is damaged, foreign, not what its name says, or holds more than ``most`` rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    footer = check_footer(part.path, table, None if manifest is None else manifest.run_id)
    if footer.num_rows > most:
        raise TraceError(
            f"{part.path} claims {footer.num_rows:,} rows: with other parts more than the run, or memory, can hold"
        )
    compared = [*ROW_KEYS.get(table, ()), *TABLES[table].required, *(["grad_norm"] if table == "steps" else [])]
    kept = [*dict.fromkeys(compared)]
    schema = TABLES[table].arrow_schema()
    try:
        part_alone = ds.dataset(str(part.path), schema=schema, format="parquet")
        batches = part_alone.to_batches(batch_size=_BATCH_ROWS, batch_readahead=1, use_threads=False)
        rows = pa.Table.from_batches(
            [batch.select(kept) for batch in batches], pa.schema([schema.field(name) for name in kept])
        )
    except (pa.ArrowException, OSError, OverflowError) as error:
        refuse_unreadable(part.path, error)
        raise TraceError(f"{part.path} is damaged ({str(error).splitlines()[0]})") from None
    if not len(rows):
        raise TraceError(f"{part.path} holds no rows")
    for name in TABLES[table].required:
        if rows[name].null_count:
            raise TraceError(f"{part.path} holds rows without {name}")
    first, last = pc.min(rows["step"]).as_py(), pc.max(rows["step"]).as_py()
    if (first, last) != (part.first_step, part.last_step):
        raise TraceError(f"{part.path} holds steps {first} to {last}, which is not what its name says")
    return rows


def _doubles(run: Path, folder: Path, rows: list[pa.Table], spans: list[tuple[Part, Steps]]) -> Iterator[Fault]:
    """Rows that stand twice; a part whose steps others hold too can go."""
    import pyarrow as pa

    if not rows:
        return
    frame = pa.concat_tables(rows).unify_dictionaries().to_pandas()
    doubled = frame[frame.duplicated(list(ROW_KEYS[folder.name]))]
    if doubled.empty:
        return
    seen = np.zeros(0, dtype=np.int64)
    name = folder.relative_to(run).as_posix()
    redundant = []
    for part, steps in sorted(spans, key=lambda pair: (-len(pair[1]), len(pair[0].path.name), pair[0])):
        if np.isin(steps, seen).all():
            redundant.append(part)
        seen = np.union1d(seen, steps)
    for part in redundant:
        yield Fault(f"{name}/{part.path.name}", "holds only steps that other parts hold too", "set aside")
    if not redundant:
        some = ", ".join(str(step) for step in sorted({*doubled["step"]})[:5])
        yield Fault(name, f"rows stand twice: of steps {some}")


def _check_truth(run: Path, manifest: Manifest, tables: dict[str, list[pa.Table]], found: Findings) -> None:
    """Whether steps are without gap, and the manifest says what the trace does."""
    steps = _steps(tables.get("steps", []))
    found.faults += _gaps(manifest, steps)
    state = status(run, manifest)
    if state == "running":
        found.notes.append("the run is being written by another process")
    if state == "killed":
        found.notes.append("the run was killed; the same command, or --resume, continues it")
    gaps = [gap for gap in manifest.gaps if gap.get("table") == "steps"]
    total, there = manifest.total_steps, len(steps)
    if state == "completed" and total is not None and there + sum(_length(gap, total) for gap in gaps) < total:
        what = f"says completed, but {there} of {total} steps are there"
        found.faults.append(_missing(FILE_NAME, what, "steps", int(steps[-1]) + 1 if there else 0, total - 1))
    ended = _last_saved(manifest)
    last_step = int(steps[-1]) if there else -1
    cuts = [int(m[1]) for folder in (run / "aside").glob("from-*") if (m := _CUT.fullmatch(folder.name))]
    # A run may have been killed after a cut, before its manifest said so.
    ended = min([ended, *(cut - 1 for cut in cuts if cut > last_step)])
    beyond = _uncovered(np.array([last_step + 1, ended]), manifest, "steps") if ended > last_step else steps[:0]
    if state != "running" and len(beyond):
        last = f"the last one is {last_step}" if there else "none is there"
        what = f"says that step {ended} is recorded; {last}"
        found.faults.append(_missing(FILE_NAME, what, "steps", last_step + 1, ended))
    if state != "running":
        found.faults += _absent_layers(manifest, tables, ended)
        found.faults += _absent_epochs(manifest, tables, min(ended, last_step) + (state == "completed"))
    names = {str(entry.get("name")) for entries in manifest.parameters.values() for entry in entries}
    recorded = {str(name) for rows in tables.get("layers", []) for name in rows["parameter"].unique().to_pylist()}
    if names and recorded - names:
        strange = ", ".join(sorted(recorded - names)[:5])
        found.faults.append(Fault(FILE_NAME, f"doesn't know the recorded tensors {strange}"))


def _last_saved(manifest: Manifest) -> int:
    """The last step whose rows of all tables were written before the manifest was; -1 for none."""
    segment = manifest.segments[-1] if manifest.segments else {}
    last = segment.get("last_step")
    return int(segment.get("first_step") or 0) - 1 if last is None else int(last)


def _uncovered(steps: Steps, manifest: Manifest, table: str) -> Steps:
    """Those of ``steps`` that the manifest doesn't say are lacking."""
    for gap in (gap for gap in manifest.gaps if gap.get("table") == table):
        last = gap.get("last_step")
        steps = steps[(steps < (gap.get("first_step") or 0)) | (steps > (np.inf if last is None else last))]
    return steps


def _absent_layers(manifest: Manifest, tables: dict[str, list[pa.Table]], ended: int) -> Iterator[Fault]:
    """Steps in which layers were recorded, as the table ``steps`` tells, and of which ``layers`` holds no row."""
    rows = [np.asarray(rows["step"])[~np.asarray(rows["grad_norm"].is_null())] for rows in tables.get("steps", [])]
    recorded = np.unique(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)
    recorded = recorded[recorded <= ended]
    absent = _uncovered(np.setdiff1d(recorded, _steps(tables.get("layers", []))), manifest, "layers")
    if len(absent):
        places = np.searchsorted(recorded, absent)
        for stretch in np.split(absent, np.flatnonzero(np.diff(places) > 1) + 1):
            yield _absent("layers", int(stretch[0]), int(stretch[-1]))


def _absent_epochs(manifest: Manifest, tables: dict[str, list[pa.Table]], ended: int) -> Iterator[Fault]:
    """Epochs after which training went on, or ended as it should, and that have no row."""
    if "recording" not in manifest.config:
        return  # another program's loop: whether it tells of epochs is its own affair
    ends = list[int]()
    for phase in manifest.phases:
        first, epochs, length = (phase.get(name) for name in ("first_step", "epochs", "steps_per_epoch"))
        if isinstance(first, int) and isinstance(epochs, int) and isinstance(length, int) and length > 0:
            count = min(epochs, max(0, (ended - first) // length))
            ends += [first + (epoch + 1) * length for epoch in range(count)]
    absent = np.setdiff1d(np.array(ends, dtype=np.int64), _steps(tables.get("epochs", [])))
    for step in _uncovered(absent, manifest, "epochs"):
        what = f"the epoch that ended after {step} updates is missing"
        yield _missing("trace/epochs", what, "epochs", int(step), int(step))


def _absent(table: str, first: int, last: int) -> Fault:
    what = f"step {first} is missing" if first == last else f"steps {first} to {last} are missing"
    return _missing(f"trace/{table}", what, table, first, last)


def _missing(path: str, what: str, table: str, first: int, last: int) -> Fault:
    return Fault(path, what, "note the gap", {"table": table, "first_step": first, "last_step": last})


def _steps(rows: list[pa.Table]) -> Steps:
    parts = [np.asarray(table["step"], dtype=np.int64) for table in rows]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _gaps(manifest: Manifest, steps: Steps) -> Iterator[Fault]:
    """Stretches of steps that are missing and that the manifest doesn't account for."""
    known = sorted(
        (int(gap.get("first_step") or 0), sys.maxsize if gap.get("last_step") is None else int(gap["last_step"]))
        for gap in manifest.gaps
        if gap.get("table") == "steps"
    )
    before = np.concatenate(([-1], steps[:-1])) if len(steps) else steps
    for place in np.flatnonzero(steps != before + 1):
        first, end = int(before[place]) + 1, int(steps[place])
        for lacking, last in known:
            if lacking > first and lacking <= end:
                yield _absent("steps", first, min(lacking, end) - 1)
            if lacking <= end and last >= first:
                first = end if last >= end else last + 1
        if first < end:
            yield _absent("steps", first, end - 1)


def _length(gap: dict[str, int | None], total: int) -> int:
    last = gap.get("last_step")
    return (total - 1 if last is None else last) - (gap.get("first_step") or 0) + 1
