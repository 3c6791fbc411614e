"""The manifest, ``run.json``: what a run is, how far it came, and on which machine."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission import limits
from tvlars_probe.admission.files import read_plain
from tvlars_probe.admission.names import encodable_values, printable
from tvlars_probe.admission.texts import parse_json, refuse_costly_json
from tvlars_probe.errors import LaterVersionError, RefusedFileError, RunDirectoryError, UnreadableError
from tvlars_probe.traces.files import replace_file
from tvlars_probe.traces.gaps import Gap
from tvlars_probe.traces.manifest_entries import ManifestEntries
from tvlars_probe.traces.plain_types import NON_FINITE, mismatches, shown
from tvlars_probe.traces.table_form import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE_NAME = "run.json"
# Fields in which the names of non-finite floats become floats again. Elsewhere "inf" and "nan" stay text, as in notes.
_WITH_RATES = {"peak_lr", "phases", "groups", "best", "config"}

_WITH_PATHS = ("config", "command")
"""Fields that hold paths, which may be no UTF-8."""

_REMEDY = "'tvlars-probe check' with --repair writes a new one from the trace and the last checkpoint"

STATUSES = ("running", "completed", "diverged", "interrupted", "failed")
"""What a manifest's status can be. A run that says running while nobody holds its lock is shown as killed."""


@dataclass(kw_only=True, repr=False)
class Manifest:
    """The manifest of a run. What isn't known is None or empty.

    Attributes:
        run_id: unique name of the run; the column ``run`` holds it.
        schema_version: version of the tables and of this file.
        config_id: hash of the settings that change the numbers.
        created: when the run began: UTC, ISO 8601.
        status: one of `STATUSES`.
        command: the command line.
        config: the whole configuration.
        seed: seed of everything random.
        data: name, sizes of the parts, number of classes, image shape, fingerprint.
        model: name, number of parameters.
        batch_size: samples of one update, over all ranks.
        micro_batches: number of pieces in which a rank computes its share of the batch.
        world_size: number of ranks.
        bn_batch_size: samples over which BatchNorm takes its statistics.
        steps_per_epoch: updates per epoch.
        total_steps: updates of the whole run.
        peak_lr: largest learning rate of the schedule.
        loss_mean: what each loss of the table ``steps`` is a mean over: "samples", "tokens", "ranks" or "micro-batches"
            (each of them alike, whatever its size), "mixed" where steps differ; None where no loss was told.
        phases: first step, epochs, steps per epoch, batch size, schedule and peak rate of each phase, in order. The
            figures above are those of the first phase.
        groups: per parameter group, its phase and what its optimizer does to it.
        parameters: per phase, the table of parameters.
        segments: per uninterrupted stretch of the run, its steps, times and environment.
        finding: the first step whose loss, or a recorded norm, was not finite, and the first bad tensors in it.
        notes: what else a reader of the numbers should know.
        gaps: stretches of steps that a table lacks, and why.
        best: step, metric and value of the best checkpoint.
        best_test_acc1: highest top-1 test accuracy of any epoch.
        final: the last epoch's metrics.
    """

    run_id: str
    schema_version: int = SCHEMA_VERSION
    config_id: str | None = None
    created: str = field(default_factory=lambda: now().isoformat(timespec="seconds"))
    status: str = "running"
    command: list[str] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    data: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    batch_size: int | None = None
    micro_batches: int | None = None
    world_size: int | None = None
    bn_batch_size: int | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    peak_lr: float | None = None
    loss_mean: str | None = None
    phases: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    parameters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    segments: list[dict[str, Any]] = field(default_factory=list)
    finding: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_test_acc1: float | None = None
    final: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Manifest of {printable(self.run_id)}: {self.status}>"  # all of it is pages long

    @property
    def is_of_train(self) -> bool:
        """Whether ``tvlars-probe train`` made the run; if not, a loop of somebody's own was recorded."""
        return {"place", "recording"} <= self.config.keys()  # every version of ``train`` has written these

    def continue_from(self, before: Manifest, step: int) -> None:
        """Take over an earlier manifest of the same run.

        The run's history up to ``step`` is taken over, and every field that is empty here.

        Args:
            before: the earlier manifest.
            step: number of updates that the run keeps.
        """
        history = ("run_id", "created", "segments", "notes", "gaps", "best", "best_test_acc1", "final")
        for f in dataclasses.fields(self):
            if f.name in history or getattr(self, f.name) in (None, {}, []):
                setattr(self, f.name, getattr(before, f.name))
        # From ``step`` on the run is recorded anew: what was lacking or not finite there says nothing any more.
        self.gaps = [early for gap in self.gaps if (early := gap.before(step)) is not None]
        if self.finding is not None and self.finding.get("step", 0) >= step:
            self.finding = None

    def note_loss_mean(self, over: str) -> None:
        """Keep what some steps' losses are means over; "mixed" if it is another thing than before.

        Only who makes the losses knows that they are means of micro-batches: that isn't overwritten.
        """
        if self.loss_mean != "micro-batches":
            self.loss_mean = over if self.loss_mean in (None, over) else "mixed"

    def save(self, folder: Path) -> None:
        """Replace ``folder/run.json`` in one step.

        Raises:
            OSError: it can't be written; the file is as it was.
        """
        content = self._content()
        replace_file(folder / FILE_NAME, lambda stream: stream.write(content))

    def refuse_unreadable(self) -> None:
        """Refuse to begin a run whose manifest no reader would take.

        Raises:
            RunDirectoryError: it has too many bytes or values, or nests too deep.
        """
        content, remedy = self._content(), "record fewer tensors, or a shorter config"
        if len(content) > limits.MANIFEST_BYTES:
            told = f"it would have {len(content):,} bytes, of {limits.MANIFEST_BYTES:,} that it can have"
            raise RunDirectoryError(f"{FILE_NAME} can't be written: {told}; {remedy}")
        try:
            refuse_costly_json(content, FILE_NAME)
        except RefusedFileError as error:
            raise RunDirectoryError(f"{FILE_NAME} can't be written: {error.reason}; {remedy}") from None

    def _content(self) -> bytes:
        # A path that is no UTF-8 holds lone surrogates. backslashreplace spells them as JSON's own escapes: \udc80.
        try:
            return self.to_json().encode(errors="backslashreplace")
        except RecursionError:  # of the caller's config, which may hold itself
            raise RunDirectoryError(f"{FILE_NAME} can't be written: its config nests too deep") from None

    def to_json(self) -> str:
        """The whole manifest as JSON."""
        return json.dumps(in_json(dataclasses.asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read ``folder/run.json``. Unknown fields are passed over.

        Raises:
            UnreadableError: the system refuses to read it.
            LaterVersionError: it has a later schema version.
            RunDirectoryError: there is none, or it is damaged.
        """
        path = folder / FILE_NAME
        try:
            text = read_plain(path, limits.MANIFEST_BYTES)
        except RefusedFileError as error:
            raise RunDirectoryError(f"{path} is damaged: {error.reason}; {_REMEDY}") from None
        except (FileNotFoundError, NotADirectoryError):
            raise RunDirectoryError(f"{folder} is not a run directory: it has no {FILE_NAME}") from None
        except OSError as error:
            raise UnreadableError(f"{path} can't be read: {error.strerror or error}") from None
        return cls.from_json(text, path)

    @classmethod
    def from_json(cls, text: str | bytes, path: Path) -> Manifest:
        """Make a manifest of what `to_json` gave. Unknown fields are passed over.

        Args:
            text: the JSON.
            path: the file that it was read from, for messages.

        Raises:
            LaterVersionError: it has a later schema version.
            RunDirectoryError: it is damaged.
        """
        try:
            content = parse_json(text, path, parse_int=_integer)
        except RefusedFileError as error:
            raise RunDirectoryError(f"{path} is damaged: {error.reason}; {_REMEDY}") from None
        except ValueError as error:
            raise RunDirectoryError(f"{path} can't be read: {error}; {_REMEDY}") from None
        if not isinstance(content, dict) or not isinstance(content.get("run_id"), str):
            raise RunDirectoryError(f"{path} is not the manifest of a run: it has no run_id; {_REMEDY}")
        version = content.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise LaterVersionError(
                f"{path} has schema version {shown(version)}; this tvlars-probe reads up to {SCHEMA_VERSION}: "
                f"upgrade it"
            )
        # A stored gap is a dict and no `Gap` yet: `ManifestEntries` has its shape.
        stored = {name: value for name, value in content.items() if name != "gaps"}
        if wrong := mismatches(cls, stored) or mismatches(ManifestEntries, content):
            raise RunDirectoryError(f"{path} is damaged: its {', its '.join(wrong)}; {_REMEDY}")
        known = {f.name for f in dataclasses.fields(cls)}
        # Paths stay as they are, to be opened; names and notes are shown, and joined with tables, which are UTF-8.
        # Bytes in UTF-8 hold what can't be encoded only as an escape: the values of most manifests need no second look.
        is_encodable = isinstance(text, bytes) and b"\\ud" not in text.lower()
        values = {
            name: value if is_encodable or name in _WITH_PATHS else encodable_values(value)
            for name, value in content.items()
            if name in known
        }
        values["gaps"] = [Gap.from_dict(gap) for gap in values.get("gaps", [])]
        return cls(**values | {name: _finite_or_not(values[name]) for name in _WITH_RATES & values.keys()})


def is_of_loss(finding: Mapping[str, Any]) -> bool:
    """Whether a finding is of a loss that was told and not finite; if not, it is of a tensor's norm."""
    loss = finding.get("loss")
    if loss is None:  # none was told: where a tensor is named, it alone was found
        return not finding.get("tensor")
    return not math.isfinite(float(loss))  # "nan" and "inf" stand for what JSON lacks


def _integer(digits: str) -> int:
    """Parse an integer of JSON: steps, sizes and seeds have 64 bits at most.

    Raises:
        ValueError: it is larger.
    """
    # The number of digits comes first, since int() takes long for very many.
    if len(digits) > 20 or not -(1 << 63) <= (value := int(digits)) < 1 << 64:
        raise ValueError(f"the integer {digits[:24]}... is too large" if len(digits) > 24 else f"{digits} is too large")
    return value


def _finite_or_not(value: Any) -> Any:
    """The value with the names of non-finite floats turned into floats, at any depth."""
    if isinstance(value, dict):
        return {key: _finite_or_not(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_not(item) for item in value]
    return float(value) if isinstance(value, str) and value in NON_FINITE else value


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def in_json(value: Any) -> Any:
    """The value as JSON can hold it. inf and NaN, which JSON lacks, become strings ("inf", "nan")."""
    if isinstance(value, dict):
        return {str(key): in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    # `_integer` would refuse it when the manifest is read.
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return in_json(value.tolist())  # of a number a number, of an array a list
    return str(value)
