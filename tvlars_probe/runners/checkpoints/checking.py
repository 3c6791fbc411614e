"""Is a run whole? Its directory as `tvlars_probe.traces.checking` checks it, and its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.errors import RunDirectoryError, UnreadableError
from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.traces.checking.faults import Fault, Findings, problem
from tvlars_probe.traces.checking.repairing import repair
from tvlars_probe.traces.checking.trace import check_trace
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.parts import run_ids
from tvlars_probe.traces.run_directory import is_led_out

if TYPE_CHECKING:
    from pathlib import Path


def check_run(run: Path) -> Findings:
    """Check a run; nothing is changed.

    Raises:
        RunDirectoryError: there is nothing like a run at ``run``.
    """
    found = check_trace(run)
    manifest = None if any(fault.repair == "write anew" for fault in found.faults) else _manifest(run)
    for path in checkpoints.list_checkpoints(run).values():
        if is_led_out(run, path):
            continue
        wrong = _wrong(path, manifest)
        if wrong is not None:
            found.faults.append(Fault(path.relative_to(run).as_posix(), wrong, "set aside"))
        else:
            found.checkpoints += 1
    if not checkpoints.list_checkpoints(run) and manifest is not None and _has_saved(run, manifest):
        found.faults.append(Fault(checkpoints.FOLDER, "no checkpoint is there, though the run saved some"))
    return found


def _manifest(run: Path) -> Manifest | None:
    try:
        return Manifest.load(run)
    except RunDirectoryError:
        return None


def _has_saved(run: Path, manifest: Manifest) -> bool:
    """Whether a run is known to have made checkpoints of which none was set aside."""
    ended = manifest.status == "completed" and "recording" in manifest.config
    return (
        (ended or manifest.best is not None)
        and not (run / checkpoints.FOLDER).is_symlink()
        and not any(f"set {checkpoints.FOLDER}/" in note for note in manifest.notes)
    )


def repair_run(run: Path, found: Findings) -> Path | None:
    """Set aside what ``found`` says is broken; returns the folder where it is now, None where nothing was moved.

    Raises:
        RunDirectoryError: another process writes to the run, or it can't be written.
    """
    return repair(run, found.faults, _last_manifest(run))


def _wrong(path: Path, manifest: Manifest | None) -> str | None:
    try:
        state = checkpoints.load(path)
        if manifest is not None:
            checkpoints.refuse(path, contents.misfits(state, manifest))
    except UnreadableError:
        raise
    except RunDirectoryError as error:
        return problem(error)
    return None


def _last_manifest(run: Path) -> Manifest | None:
    """The manifest as the last readable checkpoint holds it: of the run that most parts of the trace are of."""
    ids = run_ids(run / "trace")
    for path in reversed(checkpoints.list_checkpoints(run).values()):
        try:
            manifest = Manifest.from_json(checkpoints.load(path).get("manifest") or "", path)
        except (RunDirectoryError, TypeError):
            continue
        if not ids or manifest.run_id == max({*ids}, key=ids.count):
            return manifest
    return None
