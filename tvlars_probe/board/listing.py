"""The runs below a folder, as the list shows them: of each its manifest and the names of its parts are read."""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.files import below
from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.traces.footers import check_footer
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.run_directory import find_runs, is_led_out, status_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MOST_ROWS_READ = 1 << 20
"""Rows of a row group of which the last loss is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedRun:
    """A row of the list. What isn't known is None.

    Attributes:
        key: what stands for the run in addresses: a hash of its path below the folder.
        path: the run directory.
        name: its path below the folder.
        status: running, completed, diverged, interrupted, failed or killed; "damaged" where ``error`` says why.
        error: why the run can't be read.
        done: steps on record.
        total: steps of the whole run.
        loss: the last loss on record.
        accuracy: the best test accuracy in percent.
        optimizer: class of the first parameter group's optimizer.
        lr: the peak learning rate, or the first group's.
        batch_size: global batch size.
        created: when the run began: ISO 8601.
        findings: how many findings are on record.
    """

    key: str
    path: Path
    name: str
    status: str
    error: str | None = None
    done: int = 0
    total: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    optimizer: str | None = None
    lr: float | None = None
    batch_size: int | None = None
    created: str | None = None
    findings: int = 0


READING_SECONDS = 0.25
"""How long parts are read for one list. Of runs whose turn comes later the last loss is told by a later list."""


class RunList:
    """Lists the runs below a folder. What hasn't changed since the last time isn't read again.

    Args:
        folder: the folder; it may be a run itself.

    Attributes:
        is_behind: whether the last list lacks losses that are on record: the next ones read them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[tuple[Path, str], tuple[Any, dict[str, Any]]] = {}
        self._paths: dict[str, Path] = {}
        self._until = 0.0
        self.is_behind = False

    def runs(self) -> list[ListedRun]:
        """All runs now, those that began last first."""
        self.is_behind, self._until = False, time.monotonic() + READING_SECONDS
        listed = [self._listed(path) for path in find_runs(self.folder)]
        self._paths = {run.key: run.path for run in listed}
        there = {*self._paths.values()}
        self._read = {place: facts for place, facts in self._read.items() if place[0] in there}
        return sorted(listed, key=lambda run: run.created or "", reverse=True)

    def find(self, key: str) -> Path | None:
        """The run directory that a key stands for; None if there is none below the folder.

        A key is looked up and never made into a path, so that no address leads out of the folder.
        """
        if key not in self._paths:
            self._paths = {self._key(path): path for path in find_runs(self.folder)}
        path = self._paths.get(key)
        return None if path is None or _is_linked(self.folder, path) else path

    def name_of(self, path: Path) -> str:
        """What a run is called: its path below the folder."""
        return path.absolute().name if path == self.folder else path.relative_to(self.folder).as_posix()

    def _key(self, path: Path) -> str:
        return hashlib.sha256(os.fsencode(self.name_of(path))).hexdigest()[:20]

    def _listed(self, path: Path) -> ListedRun:
        run = ListedRun(key=self._key(path), path=path, name=self.name_of(path), status="damaged")
        try:
            refuse_leading_out(self.folder, path, whole=False)
            facts = self._once(path, FILE_NAME, self._of_manifest)
            told = self._once(path, "trace/steps", _done) | self._once(path, "trace/findings", _of_findings)
            told |= self._loss(path)
        except (UserError, OSError) as error:
            return replace(run, error=str(error))
        # Runs without that table have one finding in the manifest at most.
        findings = max(facts["findings"], told.get("findings", 0))
        return replace(run, **facts | told | {"status": status_of(path, facts["status"]), "findings": findings})

    def _loss(self, path: Path) -> dict[str, Any]:
        """The last loss; that of the last time while there is no time to read parts."""
        if time.monotonic() < self._until:
            return self._once(path, "trace/steps", _last_loss)
        held = self._read.get((path, _last_loss.__name__))
        self.is_behind |= held is None or held[0] != _change(path / "trace" / "steps")
        return {} if held is None else held[1]

    def _once(self, path: Path, name: str, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """What ``read`` makes of a file or folder of a run, as long as that is the same one."""
        if (change := _change(path / name)) is None:
            return {}
        if (held := self._read.get((path, read.__name__))) is None or held[0] != change:
            held = self._read[path, read.__name__] = (change, read(path))
        return held[1]

    @staticmethod
    def _of_manifest(path: Path) -> dict[str, Any]:
        m = Manifest.load(path)
        group = m.groups[0] if m.groups else {}
        lr = m.peak_lr if m.peak_lr is not None else group.get("lr")
        return {
            "status": m.status,
            "total": m.total_steps,
            "accuracy": m.best_test_acc1,
            "optimizer": group.get("optimizer"),
            "lr": lr if isinstance(lr, int | float) and not math.isnan(lr) else None,
            "batch_size": m.batch_size,
            "created": m.created,
            "findings": int(m.finding is not None),
        }


def refuse_leading_out(folder: Path, run: Path, *, whole: bool = True) -> None:
    """Refuse a run that holds, or is, a link which leads out of the folder: a reader would read what lies there.

    Args:
        folder: the folder that is served.
        run: a run directory in it.
        whole: whether to look at everything in the run; if not, at its manifest and the folders of its tables.

    Raises:
        RunDirectoryError: a link leads out.
    """
    if _is_linked(folder, run):
        raise RunDirectoryError(f"{run} is, or lies behind, a link that may lead out of {folder}, and is not followed")
    few = (run / FILE_NAME, *(run / "trace" / name for name in ("", "steps", "findings")))
    for place in below(run) if whole else few:
        if place.is_symlink() and not place.resolve().is_relative_to(folder.resolve()):
            raise RunDirectoryError(f"{place} is a link that leads out of {folder}, and is not followed: remove it")


def _is_linked(folder: Path, path: Path) -> bool:
    """Whether a folder between ``folder`` and the run was replaced by a link since the run was found."""
    return path != folder and is_led_out(folder, path)


def _change(place: Path) -> tuple[int, int, int] | None:
    """What changes when a file or folder is written; None where there is none."""
    try:
        about = place.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino, about.st_size


def _done(path: Path) -> dict[str, Any]:
    """Steps on record, by the names of the parts."""
    parts = list_parts(path / "trace" / "steps")
    return {"done": parts[-1].last_step + 1} if parts else {}


def _last_loss(path: Path) -> dict[str, Any]:
    """The last loss on record."""
    parts = list_parts(path / "trace" / "steps")
    return {"loss": _last_loss_of(parts[-1].path)} if parts else {}


def _last_loss_of(part: Path) -> float | None:
    """The last loss of a part of ``steps``; None where it can't be had."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if part.is_symlink():
        return None
    try:
        footer = check_footer(part, "steps")
        last = footer.num_row_groups - 1
        if last < 0 or footer.row_group(last).num_rows > _MOST_ROWS_READ:
            return None
        losses: Any = pq.ParquetFile(part, metadata=footer).read_row_group(last, ["loss"])["loss"].drop_null()
        return float(losses[-1].as_py()) if len(losses) else None
    except (UserError, OSError, ValueError, pa.ArrowException):
        return None  # the run's own page says what is wrong with it


def _of_findings(path: Path) -> dict[str, Any]:
    return {"findings": sum(_rows(part.path) for part in list_parts(path / "trace" / "findings"))}


def _rows(part: Path) -> int:
    try:
        return 0 if part.is_symlink() else check_footer(part, "findings").num_rows
    except (UserError, OSError, ValueError):
        return 0
