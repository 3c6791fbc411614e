"""Is a run whole? Its directory as `tvlars_probe.traces.checking` checks it, and its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.errors import RunDirectoryError, UnreadableError
from tvlars_probe.runners import checkpoints
from tvlars_probe.traces.checking import Fault, Findings, check_trace, problem
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.repairing import repair
from tvlars_probe.traces.run_directory import is_led_out

if TYPE_CHECKING:
    from pathlib import Path


def check_run(run: Path) -> Findings:
    """Check a run; nothing is changed.

    Raises:
        RunDirectoryError: there is nothing like a run at ``run``.
    """
    found = check_trace(run)
    shapes = _shapes(run)
    for step, path in checkpoints.list_checkpoints(run).items():
        if is_led_out(run, path):
            continue
        wrong = _wrong(path, step, shapes)
        if wrong is not None:
            found.faults.append(Fault(path.relative_to(run).as_posix(), wrong, "set aside"))
        else:
            found.checkpoints += 1
    if not checkpoints.list_checkpoints(run) and _has_saved(run):
        found.faults.append(Fault(checkpoints.FOLDER, "no checkpoint is there, though the run saved some"))
    return found


def _has_saved(run: Path) -> bool:
    """Whether a run is known to have made checkpoints of which none was set aside."""
    try:
        manifest = Manifest.load(run)
    except RunDirectoryError:
        return False
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


def _shapes(run: Path) -> dict[str, dict[str, list[int]]]:
    """Per phase, the recorded tensors' shapes; empty where the manifest doesn't tell."""
    try:
        parameters = Manifest.load(run).parameters
    except RunDirectoryError:
        return {}
    return {
        phase: {entry["name"]: entry["shape"] for entry in entries if {"name", "shape"} <= entry.keys()}
        for phase, entries in parameters.items()
    }


def _wrong(path: Path, step: int, shapes: dict[str, dict[str, list[int]]]) -> str | None:
    try:
        state = checkpoints.load(path)
    except UnreadableError:
        raise
    except RunDirectoryError as error:
        return problem(error)
    if state["step"] != step:
        return f"holds the state after {state['step']} updates, not after {step}"
    model = state.get("model")
    if not isinstance(model, dict):
        return "holds no model"
    for name, shape in shapes.get(str(state.get("phase")), {}).items():
        there = [*getattr(model.get(name), "shape", ())]
        if name not in model or there != [*shape]:
            return f"holds another model's weights: {name} is {there if name in model else 'missing'}, not {shape}"
    return None


def _last_manifest(run: Path) -> Manifest | None:
    """The manifest as the last readable checkpoint holds it."""
    for path in reversed(checkpoints.list_checkpoints(run).values()):
        try:
            return Manifest.from_json(checkpoints.load(path).get("manifest") or "", path)
        except (RunDirectoryError, TypeError):
            continue
    return None
