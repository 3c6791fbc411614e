"""Is a run's directory whole? Checks the manifest, parts, steps and leftovers.

Checkpoints need torch and are checked in `tvlars_probe.runners.checkpoints.checking`. Nothing is changed here: what can
be set aside, `tvlars_probe.traces.checking.repairing` sets aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.admission.files import below
from tvlars_probe.errors import LaterVersionError, RunDirectoryError, UnreadableError
from tvlars_probe.traces.checking.completeness import check_completeness
from tvlars_probe.traces.checking.faults import Fault, Findings, problem
from tvlars_probe.traces.checking.tables import check_table, steps_of, table_folders
from tvlars_probe.traces.leftovers import is_unfinished
from tvlars_probe.traces.manifest import FILE_NAME, STATUSES, Manifest
from tvlars_probe.traces.parts import run_ids
from tvlars_probe.traces.run_directory import FIXED, LOCK_NAME, is_led_out
from tvlars_probe.traces.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from tvlars_probe.traces.checking.faults import Repair

_FOLDERS = ("trace", "checkpoints", "aside", "sharpness", "landscape", "noise", *(f"trace/{table}" for table in TABLES))


def check_trace(run: Path) -> Findings:
    """Check everything in a run directory but the checkpoints.

    Raises:
        UnreadableError: the system refuses to read one of the run's files.
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
    tables: dict[str, list[pa.Table]] = {}
    for folder in table_folders(run):
        # ``trace/`` comes first: a table of the same name elsewhere doesn't hide its steps.
        tables.setdefault(folder.name, check_table(run, folder, manifest, found))
    found.steps = len(steps_of(tables.get("steps", [])))
    if manifest is not None:
        check_completeness(run, manifest, tables, found)
    return found


def _check_manifest(run: Path, found: Findings) -> Manifest | None:
    """The run's manifest; None if it is damaged or another run's."""
    try:
        manifest = Manifest.load(run)
    except UnreadableError:  # a RunDirectoryError too, but the manifest may be sound
        raise
    except RunDirectoryError as error:
        repair: Repair | None = None if isinstance(error, LaterVersionError) else "write anew"
        found.faults.append(Fault(FILE_NAME, problem(error), repair))
        return None
    if manifest.status not in STATUSES:
        found.faults.append(Fault(FILE_NAME, f"its status is {manifest.status!r} (known: {', '.join(STATUSES)})"))
    # With a single part it would be open whether the part or the manifest is the foreign one.
    ids = run_ids(run / "trace")
    if len(ids) > 1 and len({*ids}) == 1 and manifest.run_id not in ids:
        what = f"is of the run {manifest.run_id}, and all parts of the trace are of {ids[0]}"
        found.faults.append(Fault(FILE_NAME, what, "write anew"))
        return None
    found.notes += manifest.notes
    for gap in manifest.gaps:
        last = "the end" if gap.last_step is None else gap.last_step
        found.notes.append(f"{gap.table} lacks steps {gap.first_step} to {last}: {gap.reason}")
    return manifest


def _strange_files(run: Path) -> Iterator[Fault]:
    """Faults for links, and for what killed processes left half done."""
    for path in sorted(below(run)):
        name = path.relative_to(run).as_posix()
        if name.startswith(("aside/", "exports/")):  # in exports/ trackers keep files and links of their own
            continue
        if path.is_symlink():
            repair: Repair | None = None if name in FIXED else "set aside"
            yield Fault(name, "is a link: what belongs to a run lies inside it", repair)
        elif is_unfinished(path):
            yield Fault(name, "was left half done by a process that was killed; no reader looks at it", "set aside")


def _files_for_folders(run: Path) -> Iterator[Fault]:
    """Faults for files that stand in a folder's place, and for a lock file that can't be locked."""
    for name in _FOLDERS:
        path = run / name
        if not is_led_out(run, path) and path.exists() and not path.is_dir():
            yield Fault(name, "is no folder", None if name in FIXED else "set aside")
    lock = run / LOCK_NAME
    if lock.exists() and not lock.is_symlink() and not lock.is_file():
        yield Fault(LOCK_NAME, "is no plain file, so the run can't be locked: remove it")
