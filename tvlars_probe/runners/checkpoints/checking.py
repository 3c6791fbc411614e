"""Checking a whole run: its directory and trace, by `tvlars_probe.traces.checking`, and its checkpoints."""

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
    """Check a run's directory, trace and checkpoints, and change nothing.

    Raises:
        UnreadableError: the system refuses to read one of its files.
        RunDirectoryError: there is nothing like a run at ``run``.
    """
    found = check_trace(run)
    # A manifest that is to be written anew can't be read or is another run's: checkpoints aren't compared with it.
    manifest = None if any(fault.repair == "write anew" for fault in found.faults) else _manifest(run)
    for path in checkpoints.list_checkpoints(run).values():
        if is_led_out(run, path):
            continue  # check_trace has reported the link
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
    """Whether the run is known to have saved checkpoints, and no note says that one was set aside."""
    # `train` saves at the end of every run that it completes.
    ended = manifest.status == "completed" and manifest.is_of_train
    return (
        (ended or manifest.best is not None)
        and not (run / checkpoints.FOLDER).is_symlink()
        and not any(f"set {checkpoints.FOLDER}/" in note for note in manifest.notes)
    )


def repair_run(run: Path, found: Findings) -> Path | None:
    """Set aside what ``found`` names as broken.

    Returns:
        the folder that holds it now; None where nothing was moved.

    Raises:
        RunDirectoryError: another process writes to the run, or it can't be written.
    """
    return repair(run, found.faults, _last_manifest(run))


def _wrong(path: Path, manifest: Manifest | None) -> str | None:
    """What is wrong with a checkpoint; None if it loads and fits the manifest."""
    try:
        state = checkpoints.load(path)
        if manifest is not None:
            checkpoints.refuse(path, contents.misfits(state, manifest))
    except UnreadableError:
        # A RunDirectoryError too, but of a file that may be sound: it must not be set aside.
        raise
    except RunDirectoryError as error:
        return problem(error)
    return None


def _last_manifest(run: Path) -> Manifest | None:
    """The manifest that the last readable checkpoint of this run holds, None where there is none.

    This run is the one that most parts of the trace name; where no part names any, every checkpoint is of this run.
    """
    ids = run_ids(run / "trace")
    for path in reversed(checkpoints.list_checkpoints(run).values()):
        try:
            # A checkpoint without a manifest gives an empty text, which from_json refuses.
            manifest = Manifest.from_json(checkpoints.load(path).get("manifest") or "", path)
        except (RunDirectoryError, TypeError):
            continue
        if not ids or manifest.run_id == max({*ids}, key=ids.count):
            return manifest
    return None
