"""Is a run's directory whole? What of it can be told without torch: manifest, parts, steps, leftovers.

Everything is read and nothing is changed. What may be set aside, `tvlars_probe.traces.repairing` sets aside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from tvlars_probe.errors import LaterVersionError, RunDirectoryError, TraceError, UnreadableError
from tvlars_probe.traces.footers import check_footer, refuse_unreadable
from tvlars_probe.traces.manifest import FILE_NAME, STATUSES, Manifest
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.run_directory import FIXED, is_led_out, status
from tvlars_probe.traces.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from tvlars_probe.traces.parts import Part

Repair = Literal["set aside", "write anew"]
ROW_KEYS = {"steps": ("step",), "layers": ("step", "parameter"), "epochs": ("phase", "epoch")}
"""Per table what no two rows share."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong with a run.

    Attributes:
        path: the file or folder, below the run.
        problem: what is wrong.
        repair: what ``--repair`` does about it; None where it can't do anything.
    """

    path: str
    problem: str
    repair: Repair | None = None


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


def _table_folders(run: Path) -> list[Path]:
    folders = [run / home / table for home in ("trace", "sharpness", ".") for table in TABLES]
    return [folder for folder in folders if folder.is_dir() and not is_led_out(run, folder)]


def _check_table(run: Path, folder: Path, manifest: Manifest | None, found: Findings) -> list[pa.Table]:
    """The rows of a table's readable parts, of the columns that tell rows apart."""
    rows = []
    spans: list[tuple[Part, set[int]]] = []
    for part in list_parts(folder):
        if part.path.is_symlink():
            continue
        try:
            read = _read(part, folder.name, manifest)
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
        spans.append((part, {int(step) for step in np.unique(np.asarray(read["step"]))}))
    if folder.parent.name == "trace" and folder.name in ROW_KEYS:
        found.faults += _doubles(run, folder, rows, spans)
    return rows


def _read(part: Part, table: str, manifest: Manifest | None) -> pa.Table:
    """A part's rows, all columns decoded.

    Raises:
        TraceError: it is damaged, foreign, or not what its name says.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    check_footer(part.path, table, None if manifest is None else manifest.run_id)
    try:
        rows = pq.read_table(part.path, schema=TABLES[table].arrow_schema())
    except (pa.ArrowException, OSError, OverflowError) as error:
        refuse_unreadable(part.path, error)
        raise TraceError(f"{part.path} is damaged ({str(error).splitlines()[0]})") from None
    if not len(rows) or rows["step"].null_count:
        raise TraceError(f"{part.path} holds rows without a step" if len(rows) else f"{part.path} holds no rows")
    first, last = pc.min(rows["step"]).as_py(), pc.max(rows["step"]).as_py()
    if (first, last) != (part.first_step, part.last_step):
        raise TraceError(f"{part.path} holds steps {first} to {last}, which is not what its name says")
    return rows.select([*dict.fromkeys((*ROW_KEYS.get(table, ()), "step"))])


def _doubles(run: Path, folder: Path, rows: list[pa.Table], spans: list[tuple[Part, set[int]]]) -> Iterator[Fault]:
    """Rows that stand twice; a part whose steps others hold too can go."""
    import pyarrow as pa

    if not rows:
        return
    frame = pa.concat_tables(rows).unify_dictionaries().to_pandas()
    doubled = frame[frame.duplicated(list(ROW_KEYS[folder.name]))]
    if doubled.empty:
        return
    seen: set[int] = set()
    name = folder.relative_to(run).as_posix()
    redundant = []
    for part, steps in sorted(spans, key=lambda pair: (-len(pair[1]), len(pair[0].path.name), pair[0])):
        if steps <= seen:
            redundant.append(part)
        seen |= steps
    for part in redundant:
        yield Fault(f"{name}/{part.path.name}", "holds only steps that other parts hold too", "set aside")
    if not redundant:
        some = ", ".join(str(step) for step in sorted({*doubled["step"]})[:5])
        yield Fault(name, f"rows stand twice: of steps {some}")


def _check_truth(run: Path, manifest: Manifest, tables: dict[str, list[pa.Table]], found: Findings) -> None:
    """Whether steps are without gap, and the manifest says what the trace does."""
    steps = _steps(tables.get("steps", []))
    found.faults += _gaps(run, manifest, steps)
    state = status(run, manifest)
    if state == "running":
        found.notes.append("the run is being written by another process")
    if state == "killed":
        found.notes.append("the run was killed; the same command, or --resume, continues it")
    gaps = [gap for gap in manifest.gaps if gap.get("table") == "steps"]
    total, there = manifest.total_steps, len(steps)
    if state == "completed" and total is not None and there + sum(_length(gap, total) for gap in gaps) < total:
        found.faults.append(Fault(FILE_NAME, f"says completed, but {there} of {total} steps are there"))
    ended = manifest.segments[-1].get("last_step") if manifest.segments else None
    in_order = state in ("completed", "diverged", "interrupted") and not gaps
    if in_order and ended is not None and there and steps[-1] < ended:
        found.faults.append(Fault(FILE_NAME, f"says that step {ended} is recorded; the last one is {steps[-1]}"))
    names = {str(entry.get("name")) for entries in manifest.parameters.values() for entry in entries}
    recorded = {str(name) for rows in tables.get("layers", []) for name in rows["parameter"].unique().to_pylist()}
    if names and recorded - names:
        strange = ", ".join(sorted(recorded - names)[:5])
        found.faults.append(Fault(FILE_NAME, f"doesn't know the recorded tensors {strange}"))


def _steps(rows: list[pa.Table]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    parts = [np.asarray(table["step"], dtype=np.int64) for table in rows]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)


def _gaps(run: Path, manifest: Manifest, steps: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[Fault]:
    """Stretches of steps that are missing and that the manifest doesn't account for."""
    if not len(steps):
        return
    known = [(g.get("first_step", 0), g.get("last_step")) for g in manifest.gaps if g.get("table") == "steps"]
    missing = np.setdiff1d(np.arange(steps[-1] + 1), steps)
    for first, last in known:
        missing = missing[(missing < first) | (missing > (np.inf if last is None else last))]
    if not len(missing):
        return
    for stretch in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
        span = f"step {stretch[0]} is" if len(stretch) == 1 else f"steps {stretch[0]} to {stretch[-1]} are"
        yield Fault("trace/steps", f"{span} missing")


def _length(gap: dict[str, int | None], total: int) -> int:
    last = gap.get("last_step")
    return (total - 1 if last is None else last) - (gap.get("first_step") or 0) + 1
