"""Checkpoints: ``checkpoints/step-<N>.pt`` is the whole state after N updates.

They hold tensors and plain values only and load with ``weights_only=True``: nothing is unpickled. They are written
under a temporary name, synced and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import pickle
import re
import shlex
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.errors import RunDirectoryError, UnreadableError
from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.traces.files import replace_file
from tvlars_probe.traces.plain_types import fits

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


FORMAT = 1
FOLDER = "checkpoints"
MOVE_AWAY = "move it away to use an earlier one"
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

_NAME = re.compile(r"step-(\d+)\.pt")


def list_checkpoints(run: Path) -> dict[int, Path]:
    """The run's checkpoints by step, in order."""
    folder = run / FOLDER
    found = {int(m[1]): p for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))} if folder.is_dir() else {}
    return dict(sorted(found.items()))


def save(run: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step`` updates."""
    path = run / FOLDER / f"step-{step}.pt"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, lambda stream: torch.save({"format": FORMAT, "step": step, **state}, stream))
    return path


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        UnreadableError: the system refuses.
        RunDirectoryError: it is missing, damaged, holds anything but tensors and plain values, or not what a
            checkpoint holds.
    """
    if path.exists() and not path.is_file():  # a FIFO would be waited for
        raise RunDirectoryError(f"{path} is no plain file: {_remedy(path)}")
    try:
        _refuse_compressed(path)
        with warnings.catch_warnings(action="ignore"):  # of what is refused anyway
            state = torch.load(path, map_location=device, weights_only=True)
    except RunDirectoryError:
        raise
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
    except Exception as error:  # the unpickler of tensors meets garbage with errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunDirectoryError(f"{path} is damaged ({reason}): {_remedy(path)}") from None
    if not isinstance(state, dict) or not fits(found := state.get("format"), int) or found != FORMAT:
        raise RunDirectoryError(f"{path} is not a checkpoint of tvlars-probe: {_remedy(path)}")
    refuse(path, contents.faults(state))
    if (named := _NAME.fullmatch(path.name)) and state["step"] != int(named[1]):
        refuse(path, [f"it holds the state after {state['step']} updates, not after {named[1]}"])
    return state


def _refuse_compressed(path: Path) -> None:
    """Refuse what torch doesn't write: compressed, a few bytes on disk stand for any number in memory."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise RunDirectoryError(f"{path} is not a checkpoint of tvlars-probe (it is compressed): {_remedy(path)}")


def _remedy(path: Path) -> str:
    run = shlex.quote(str(path.parent.parent))
    return f"'tvlars-probe check {run} --repair' sets it aside, and an earlier one is used"


def refuse(path: Path, wrong: Iterable[str], remedy: str | None = None) -> None:
    """Refuse a checkpoint of which something is wrong.

    Raises:
        RunDirectoryError: something is.
    """
    if told := [*wrong]:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        what = f"doesn't hold what it should ({'; '.join(told[:3])}{more})"
        raise RunDirectoryError(f"{path} {what}: {remedy or _remedy(path)}")


def refuse_for_this_run(path: Path, wrong: Iterable[str]) -> None:
    """`refuse`, where what is wrong shows only beside the run's model and optimizer, which a check doesn't build."""
    refuse(path, wrong, MOVE_AWAY)


def keep_only(run: Path, steps: Iterable[int]) -> None:
    """Remove all checkpoints but these."""
    kept = {*steps}
    for step, path in list_checkpoints(run).items():
        if step not in kept:
            path.unlink()
