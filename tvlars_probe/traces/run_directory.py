"""A run's directory: who may write there, and what state it is in.

The process that trains holds a lock on the directory, so two processes never write to one run. The system frees the
lock when the process dies: a run was killed if its manifest says running and nobody holds its lock.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tvlars_probe.admission.names import encodable
from tvlars_probe.errors import RunDirectoryError, RunHeldError
from tvlars_probe.traces.leftovers import remove_leftovers
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.schema import TABLES

try:
    import fcntl

    HAS_LOCKS = True
except ImportError:  # Windows: runs can be read there, and a run is never taken for killed
    HAS_LOCKS = False

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RUNS_FOLDER = Path("runs")
"""Folder below which `train` makes runs, and commands look for them."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)", re.ASCII)

LOCK_NAME = ".lock"

_LOCK_ATTEMPTS, _LOCK_PAUSE = 20, 0.01
"""How often the lock is tried, and the seconds between."""

FIXED = (LOCK_NAME, "aside")
"""What a repair needs itself, and therefore can't set aside if it is a link."""

# The other places into which a run is written.
_PLACES = (FILE_NAME, "trace", "checkpoints", "sharpness", "landscape", "noise")


class RunDirectory:
    """A run directory that this process holds for writing. `create`, `take_over` and `hold` make it.

    Attributes:
        path: the directory, absolute.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path.absolute()  # the loop may change its working directory
        self._lock = lock

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make the directory and hold it.

        Raises:
            RunDirectoryError: something is there already, the directory can't be written, or it lies in another run's.
        """
        refuse_inside_run(path)
        if path.exists() and not is_vacant(path):
            if (path / FILE_NAME).exists() and HAS_LOCKS and is_held(path):
                raise RunHeldError(f"another process is writing to {path}: wait for it, or choose another folder")
            what = "a run" if (path / FILE_NAME).exists() else "something that is not a run"
            raise RunDirectoryError(f"{path} already holds {what}: choose another folder, or remove it yourself")
        refuse_links(path, FIXED)
        try:
            path.mkdir(parents=True, exist_ok=True)
            made = cls(path, _acquire(path))
        except OSError as error:
            raise RunDirectoryError(f"can't write to {path}: {error.strerror or error}") from None
        # Before the lock was ours, another process may have begun a run here.
        if not is_vacant(path):
            made.release()
            raise RunHeldError(f"another process has just made {path}: choose another folder")
        return made

    @classmethod
    def take_over(cls, path: Path) -> RunDirectory:
        """Hold the directory of a run that nobody is writing to.

        Raises:
            RunDirectoryError: it is no run, another process holds it, it can't be written, or a link leads out of it.
        """
        tables = [f"{home}/{child.name}" for home in ("trace", "sharpness") for child in _children(path / home)]
        refuse_links(path, (*FIXED, *_PLACES, *tables))
        Manifest.load(path)
        return cls.hold(path)

    @classmethod
    def hold(cls, path: Path) -> RunDirectory:
        """Hold a folder, whatever is in it.

        Raises:
            RunDirectoryError: another process holds it, it can't be written, or its lock or ``aside`` is a link.
        """
        refuse_links(path, FIXED)
        try:
            return cls(path, _acquire(path))
        except OSError as error:
            raise RunDirectoryError(f"can't write to {path}: {error.strerror or error}") from None

    def release(self) -> None:
        """Let go of the directory: others may write."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing isn't enough: forked workers share the lock
            os.close(self._lock)
            self._lock = None

    def abandon(self) -> None:
        """Let go of a directory in which nothing was recorded, and remove it."""
        with contextlib.suppress(OSError):
            (self.path / FILE_NAME).unlink(missing_ok=True)
            (self.path / LOCK_NAME).unlink()
            self.path.rmdir()
        self.release()

    @property
    def is_there(self) -> bool:
        """Whether the directory still stands where it was when this process took it."""
        # The lock file tells: its name must still lead to the file that is held.
        try:
            there = (self.path / LOCK_NAME).stat()
        except OSError:
            return False
        if self._lock is None:
            return True
        held = os.fstat(self._lock)
        return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)

    def cut_back(self, step: int, epochs_from: int | None = None) -> None:
        """Set aside the rows of step ``step`` and later ones: the run is resumed after ``step`` updates.

        Args:
            step: number of updates that the run keeps.
            epochs_from: the first step whose row of the table ``epochs`` is set aside. By default it is ``step + 1``,
                since an epoch's row describes the state after its last update.

        Raises:
            RunDirectoryError: the file system refuses; nothing is lost.
            TraceError: a part can't be split, since it is damaged or the file system can't exchange folders.
        """
        from tvlars_probe.traces.compaction import cut  # readers do without it

        remove_leftovers(self.path)
        aside = self.path / "aside" / f"from-{step}-{os.urandom(3).hex()}"
        try:
            for folder in (self.path / "trace" / name for name in TABLES):
                first_cut = epochs_from if epochs_from is not None else step + 1
                cut(folder, first_cut if folder.name == "epochs" else step, aside / folder.name)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path} can't be cut back to step {step}: {error.strerror or error} "
                f"({error.filename}); nothing is lost"
            ) from None


def refuse_links(run: Path, names: Iterable[str]) -> None:
    """Refuse a run if one of these files and folders is a link: what is written there would lie outside the run.

    Args:
        run: the run directory.
        names: paths below it.

    Raises:
        RunDirectoryError: one of ``names`` is a link.
    """
    for name in names:
        if (run / name).is_symlink():
            repair = f"'tvlars-probe check {shlex.quote(str(run))} --repair' sets it aside"
            remedy = "remove the link" if name in FIXED else repair
            raise RunDirectoryError(
                f"{run / name} is a link, and what belongs to a run lies inside it; nothing was changed: {remedy}"
            )


def is_led_out(run: Path, path: Path) -> bool:
    """Whether ``path``, which lies below the run, is a link, or a folder between the run and it is one."""
    places = (path, *path.parents)
    return any(place.is_symlink() for place in places[: places.index(run)])


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def is_vacant(path: Path) -> bool:
    """Whether a run can begin in the folder: it holds nothing, or only the lock of a run that never began."""
    return path.is_dir() and all(child.name == LOCK_NAME for child in path.iterdir())


def _acquire(path: Path) -> int | None:
    if not HAS_LOCKS:
        return None
    # A stranger's directory may hold a link or a FIFO here: no link is followed, and no FIFO waited for.
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not _is_plain(descriptor):
        os.close(descriptor)
        raise RunDirectoryError(f"{path / LOCK_NAME} is no plain file, so it can't be locked: remove it")
    try:
        _lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise RunHeldError(f"another process is writing to {path}: wait for it, or choose another folder") from None
    return descriptor


def _is_plain(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _lock(descriptor: int) -> None:
    """Lock for writing. A process that only asks (`is_held`) holds the lock for a moment; that is waited out.

    Raises:
        BlockingIOError: another process holds it.
    """
    for _ in range(_LOCK_ATTEMPTS - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_LOCK_PAUSE)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(path: Path) -> bool:
    """Whether some process holds the run at ``path`` for writing.

    Where there are no locks, or the lock file can't be opened, this is assumed.
    """
    if not HAS_LOCKS:
        return True
    try:
        descriptor = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        if not _is_plain(descriptor):
            return False  # nobody can have locked it
        # A shared lock: two processes that ask at once don't take each other for a writer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def status(path: Path, manifest: Manifest) -> str:
    """The manifest's status; killed if it says running and no process holds the run."""
    return status_of(path, manifest.status)


def status_of(path: Path, noted: str) -> str:
    """The status of the run at ``path`` whose manifest has the status ``noted``."""
    return "killed" if noted == "running" and not is_held(path) else noted


def note_failure(path: Path, error: BaseException) -> None:
    """Write into a run's manifest that the run failed, and why. Its processes must be gone.

    If that can't be written, the manifest stays as it is.
    """
    with contextlib.suppress(OSError, RunDirectoryError):
        directory = RunDirectory.take_over(path)
        try:
            manifest = Manifest.load(path)
            manifest.status = "failed"
            # A rank that could still write may have noted the error before, with its class in front.
            if str(error) not in manifest.notes and not any(note.endswith(f": {error}") for note in manifest.notes):
                manifest.notes.append(str(error))
            manifest.save(path)
        finally:
            directory.release()


def run_around(path: Path) -> Path | None:
    """The run directory in which ``path`` lies, by its own name or by where its links lead; None where it lies in none.

    `find_runs` would find no run there.
    """
    with contextlib.suppress(OSError, RuntimeError):  # links in a circle, a folder that can't be searched
        folders = (*path.absolute().parents, *path.resolve().parents)
        return next((folder for folder in folders if (folder / FILE_NAME).is_file()), None)
    return None


def refuse_inside_run(path: Path) -> None:
    """Refuse to begin a run in another run's directory.

    Raises:
        RunDirectoryError: ``path`` lies in one.
    """
    run = run_around(path)
    if run is not None and (run / "trace").is_dir():  # another program's files may be named run.json, too
        raise RunDirectoryError(f"{path} lies in the run directory {run}, where no run is looked for: choose another")


def find_runs(folder: Path) -> Iterator[Path]:
    """Every run directory at or below ``folder``, in order of their names (`by_name`). None is looked for in a run."""
    # No recursion: folders may nest deeper than Python's stack.
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        with contextlib.suppress(OSError):
            if (here / FILE_NAME).is_file():
                yield here
                continue
            children = sorted(here.iterdir(), key=by_name, reverse=True)
            # A link might lead back to a folder above it.
            waiting += [c for c in children if c.is_dir() and not c.name.startswith(".") and not c.is_symlink()]


def by_name(path: Path) -> tuple[list[float | str], str]:
    """The key by which paths are sorted: as text, but numbers in it by their size, so that lr2 is before lr16."""
    # At even places stands text, at odd ones a number: values of one place can be compared. The path itself is last.
    parts = _NUMBER.split(str(path))
    return [float(part) if place % 2 else part for place, part in enumerate(parts)], str(path)


def new_run_id(path: Path) -> str:
    """A unique run_id for the run at ``path``: its folder's name and a random number."""
    return f"{encodable(path.name)}.{os.urandom(3).hex()}"


def first_free(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, ... in which a run can begin."""
    whole = path.absolute()  # "." has no name of its own
    others = (whole.with_name(f"{whole.name}-{number}") for number in itertools.count(2))
    # `lexists`: a link that leads nowhere is something, too.
    return next(one for one in itertools.chain([path], others) if not os.path.lexists(one) or is_vacant(one))
