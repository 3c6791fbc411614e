"""The files of checkpoints: ``checkpoints/step-<N>.pt`` holds the whole state after N updates.

A checkpoint holds tensors and plain values only. It is loaded with ``weights_only=True``, so that a file can't run
code. It is written under a temporary name, synced and renamed, so that no half file stands under its name.
"""

from __future__ import annotations

import errno
import pickle
import re
import shlex
import warnings
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.admission.checkpoints import refuse_costly_checkpoint
from tvlars_probe.admission.files import open_plain
from tvlars_probe.errors import RefusedFileError, RunDirectoryError, UnreadableError
from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.traces.files import replace_file
from tvlars_probe.traces.plain_types import fits

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


FORMAT = 1
"""Version of the format; a checkpoint of another one is refused."""

FOLDER = "checkpoints"
MOVE_AWAY = "move it away to use an earlier one"
"""The remedy for a checkpoint that ``check --repair`` doesn't find fault with."""

_REFUSALS = {
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
"""Errors by which the system refuses to read a file that may be sound; any other error is taken for damage."""

_NAME = re.compile(r"step-(\d+)\.pt")


def list_checkpoints(run: Path) -> dict[int, Path]:
    """The run's checkpoints by number of updates, in ascending order."""
    folder = run / FOLDER
    found = {int(m[1]): p for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))} if folder.is_dir() else {}
    return dict(sorted(found.items()))


def save(run: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` as the checkpoint after ``step`` updates and return its path.

    Raises:
        OSError: it can't be written; what stood under its name is as it was.
    """
    path = run / FOLDER / f"step-{step}.pt"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, lambda stream: torch.save({"format": FORMAT, "step": step, **state}, stream))
    return path


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        UnreadableError: the system refuses to read the file, which may be sound.
        RunDirectoryError: the file is missing or damaged, holds more than tensors and plain values, or lacks what a
            checkpoint holds.
    """
    try:
        with open_plain(path) as stream, warnings.catch_warnings(action="ignore"):  # torch warns of what is refused
            refuse_costly_checkpoint(stream, path)
            # By the stream: torch can't open a path that is no UTF-8, and another file may take the name meanwhile.
            state = torch.load(stream, map_location=device, weights_only=True)
    except RefusedFileError as error:
        raise RunDirectoryError(f"{path} is damaged ({error.reason}): {_remedy(path)}") from None
    except FileNotFoundError:
        raise RunDirectoryError(f"there is no checkpoint {path}") from None
    except OSError as error:
        if error.errno in _REFUSALS:
            raise UnreadableError(f"{path} can't be read: {error.strerror or error}") from None
        raise RunDirectoryError(f"{path} is damaged ({error}): {_remedy(path)}") from None
    except pickle.UnpicklingError:
        raise RunDirectoryError(
            f"{path} is damaged, or holds more than tensors and plain values (which is never loaded): {_remedy(path)}"
        ) from None
    except Exception as error:  # on garbage, torch's restricted unpickler raises errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunDirectoryError(f"{path} is damaged ({reason}): {_remedy(path)}") from None
    if not isinstance(state, dict) or not fits(found := state.get("format"), int) or found != FORMAT:
        raise RunDirectoryError(f"{path} is not a checkpoint of tvlars-probe: {_remedy(path)}")
    refuse(path, contents.faults(state))
    if (named := _NAME.fullmatch(path.name)) and state["step"] != int(named[1]):
        refuse(path, [f"it holds the state after {state['step']} updates, not after {named[1]}"])
    return state


def _remedy(path: Path) -> str:
    """What to do about a checkpoint that ``check --repair`` finds broken."""
    run = shlex.quote(str(path.parent.parent))
    return f"'tvlars-probe check {run} --repair' sets it aside, and an earlier one is used"


def refuse(path: Path, wrong: Iterable[str], remedy: str | None = None) -> None:
    """Refuse a checkpoint if anything is wrong with it.

    Args:
        path: the checkpoint.
        wrong: what is wrong with it; the message gives the first three texts.
        remedy: what to do about it; by default to let ``check --repair`` set it aside.

    Raises:
        RunDirectoryError: ``wrong`` isn't empty.
    """
    if told := [*wrong]:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        what = f"doesn't hold what it should ({'; '.join(told[:3])}{more})"
        raise RunDirectoryError(f"{path} {what}: {remedy or _remedy(path)}")


def refuse_for_this_run(path: Path, wrong: Iterable[str]) -> None:
    """`refuse`, for faults that only the run's model and optimizer show.

    ``check`` builds neither and would not find them, so the remedy is to move the file away by hand.

    Raises:
        RunDirectoryError: ``wrong`` isn't empty.
    """
    refuse(path, wrong, MOVE_AWAY)


def keep_only(run: Path, steps: Iterable[int]) -> None:
    """Remove all checkpoints but those after ``steps`` updates."""
    kept = {*steps}
    for step, path in list_checkpoints(run).items():
        if step not in kept:
            path.unlink()
