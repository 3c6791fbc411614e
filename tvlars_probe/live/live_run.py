"""Follows one run and holds what a view shows of it; each renewal reads what is new."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.admission.names import encodable
from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.findings.finding import Finding
from tvlars_probe.live.layer_medians import COLUMNS, LayerMedians
from tvlars_probe.live.loss_curve import LossCurve
from tvlars_probe.live.pace import Pace
from tvlars_probe.live.state import DAMAGED, GONE, LiveState, TopEigenvalue
from tvlars_probe.traces.arrays import numbers
from tvlars_probe.traces.following import MOST_ROWS, Follower, version
from tvlars_probe.traces.manifest import FILE_NAME
from tvlars_probe.traces.schema import EPOCHS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from tvlars_probe.traces.following import Version
    from tvlars_probe.traces.manifest import Manifest

MOST_FINDINGS = 1000
"""Findings, the newest ones, that are held."""

_EPOCHS_HELD, _PHASES_HELD = 256, 16

_READ = {
    "steps": ("phase", "loss", "lr", "grad_norm", "time"),
    "layers": COLUMNS,
    "epochs": EPOCHS.names[1:],
    "curvature": ("measure", "operator", "scope_kind", "rank", "value", "error", "limit", "converged"),
    "findings": ("rule", "parameter", "value", "threshold", "text"),
}


class LiveRun:
    """A run in any state, followed.

    Args:
        path: the run directory. Nothing need be there: the state says so.
        tables: the tables to read; all that a state is made of by default.
        furthest: how many tensors furthest from their own median a state holds, of each quantity.
        most_rows: as for `Follower`.
    """

    def __init__(
        self, path: Path, *, tables: Sequence[str] = tuple(_READ), furthest: int = 5, most_rows: int = MOST_ROWS
    ) -> None:
        self.path, self._tables, self._furthest, self._most_rows = path, tables, furthest, most_rows
        self._name = encodable(path.absolute().name)
        self._follower: Follower | None = None
        self._refused: Version | None = None
        self._begin()

    def _begin(self) -> None:
        self._last_step = -1
        self._phase: str | None = None
        self._phase_began = 0
        self._curves: dict[str | None, LossCurve] = {}
        self._last: dict[str, tuple[int, float]] = {}
        self._pace = Pace()
        self._layers = LayerMedians()
        self._epochs: list[dict[str, Any]] = []
        self._eigenvalues: dict[str, TopEigenvalue] = {}
        self._findings: list[Finding] = []
        self._dropped: NDArray[np.int64] = np.empty(0, np.int64)  # steps of findings that are no longer held
        self._damage: str | None = None
        self.state = LiveState(name=self._name, path=str(self.path), status=GONE)

    def renew(self) -> LiveState:
        """The state now. It is the same object as before where nothing has changed."""
        changed = self._change()
        if changed is None:
            self._follower = self._refused = None
            return self._troubled(GONE, f"there is no run at {self.path}")
        if changed == self._refused:  # nobody has mended it
            return self.state
        try:
            if self._follower is None:
                self._begin()
                columns = {table: _READ[table] for table in self._tables}
                self._follower = Follower(
                    self.path, columns, most_rows=self._most_rows, passes_over_damage=True, in_order=False
                )
            news = self._look(self._follower)
            if (status := self._follower.status) == "killed":
                # Its last words may have come after the look: the manifest is saved before the lock is freed.
                news |= self._look(self._follower)
                status = self._follower.status
        except RunDirectoryError as error:
            self._refused = changed
            return self._troubled(DAMAGED, str(error))
        self._refused = None
        if news or status != self.state.status:
            self.state = self._made(status, self._follower.manifest)
        return self.state

    def _change(self) -> Version | None:
        try:
            return version(self.path / FILE_NAME)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return (0, 0, 0, 0)

    def _troubled(self, status: str, why: str) -> LiveState:
        """What was read before, with what is wrong now."""
        if (status, why) != (self.state.status, self.state.trouble):
            self.state = replace(self.state, status=status, trouble=why)
        return self.state

    def _look(self, follower: Follower) -> bool:
        """Take in what came since the last look; whether something came."""
        before = follower.manifest
        gained = follower.look()
        if follower.manifest.run_id != before.run_id:
            self._begin()
        elif gained.cut_back is not None:
            self._cut(gained.cut_back)
        takers = {
            "steps": self._take_steps,
            "layers": lambda rows: self._layers.add(rows, self._phase_began),
            "epochs": self._take_epochs,
            "curvature": self._take_curvature,
            "findings": self._take_findings,
        }
        # Steps come first: they tell where the phase begins.
        for table in takers:
            if (rows := gained.tables.get(table)) is not None:
                takers[table](rows)
        damage = "; ".join(map(str, gained.damaged.values())) or None
        is_news = bool(gained.tables) or follower.manifest is not before or damage != self._damage
        self._damage = damage
        return is_news

    def _cut(self, step: int) -> None:
        """Forget ``step`` and later ones: they are recorded anew."""
        self._last_step = min(self._last_step, step - 1)
        for curve in self._curves.values():
            curve.cut(step)
        self._curves = {phase: curve for phase, curve in self._curves.items() if len(curve)}
        if step <= self._phase_began:
            self._phase = next(reversed(self._curves), None)
            self._phase_began = self._curves[self._phase].points[0][0] if self._curves else 0
        self._last = {name: (at, value) for name, (at, value) in self._last.items() if at < step}
        if self._curves and "loss" not in self._last:
            self._last["loss"] = self._curves[next(reversed(self._curves))].points[-1]
        self._pace.cut(step)
        self._layers.cut(step)
        self._epochs = [row for row in self._epochs if row["step"] < step]
        self._eigenvalues = {name: one for name, one in self._eigenvalues.items() if one.step < step}
        self._findings = [finding for finding in self._findings if finding.step < step]
        self._dropped = self._dropped[self._dropped < step]

    def _take_steps(self, rows: pa.Table) -> None:
        steps, _ = numbers(rows["step"])
        self._last_step = int(steps[-1])
        for phase, first, end in _stretches(rows["phase"]):
            if not self._curves or phase != self._phase:
                self._phase, self._phase_began = phase, int(steps[first])
            # The last curve is that of the last phase.
            self._curves[phase] = self._curves.pop(phase, LossCurve())
            losses, told = numbers(rows["loss"].slice(first, end - first))
            self._curves[phase].add(steps[first:end][told], losses[told])
        for old in [*self._curves][:-_PHASES_HELD]:
            del self._curves[old]
        for name in ("loss", "lr", "grad_norm"):
            values, told = numbers(rows[name])
            if told.any():
                self._last[name] = int(steps[told][-1]), float(values[told][-1])
        times, told = numbers(rows["time"])
        self._pace.add(steps[told], times[told])

    def _take_epochs(self, rows: pa.Table) -> None:
        self._epochs = (self._epochs + rows.slice(max(0, len(rows) - _EPOCHS_HELD)).to_pylist())[-_EPOCHS_HELD:]

    def _take_curvature(self, rows: pa.Table) -> None:
        for row in rows.to_pylist():
            is_top = row["measure"] == "eigenvalue" and row["rank"] == 1 and row["value"] is not None
            if is_top and row["scope_kind"] in (None, "all"):
                given = {name: row[name] for name in ("step", "value", "error", "limit")}
                operator = row["operator"] or "hessian"
                self._eigenvalues[operator] = TopEigenvalue(
                    **given, operator=operator, converged=bool(row["converged"])
                )

    def _take_findings(self, rows: pa.Table) -> None:
        earlier = [finding.step for finding in self._findings]
        all_steps = np.concatenate([np.array(earlier, np.int64), numbers(rows["step"])[0]])
        self._dropped = np.concatenate([self._dropped, all_steps[: max(0, len(all_steps) - MOST_FINDINGS)]])
        for row in rows.slice(max(0, len(rows) - MOST_FINDINGS)).to_pylist():
            self._findings.append(Finding(**row | {"text": row["text"] or ""}))
        del self._findings[: max(0, len(self._findings) - MOST_FINDINGS)]

    def _made(self, status: str, manifest: Manifest) -> LiveState:
        curve = self._curves.get(self._phase)
        last = {name: value for name, (_, value) in self._last.items()}
        rate = self._rate(manifest)
        findings = self._all_findings(manifest)
        return LiveState(
            name=self._name,
            path=str(self.path),
            run_id=manifest.run_id,
            status=status,
            trouble=self._damage,
            notes=tuple(manifest.notes),
            steps_done=self._last_step + 1,
            steps_total=manifest.total_steps,
            phase=self._phase,
            losses=() if curve is None else curve.points,
            loss=last.get("loss"),
            rate=rate,
            seconds_left=self._seconds_left(rate, manifest),
            grad_norm=last.get("grad_norm"),
            lr=last.get("lr"),
            furthest=self._layers.furthest(self._furthest) if "layers" in self._tables else {},
            sharpness=tuple(self._eigenvalues.values()),
            findings=findings,
            finding_count=len(self._dropped) + len(findings),
            epoch={name: value for name, value in (self._epochs or [{}])[-1].items() if value is not None},
            last_time=_utc(self._pace.last_time),
        )

    def _rate(self, manifest: Manifest) -> float | None:
        segment = max((entry["first_step"] for entry in manifest.segments), default=0)
        return self._pace.rate(segment=segment, breaks=[row["step"] for row in self._epochs])

    def _seconds_left(self, rate: float | None, manifest: Manifest) -> float | None:
        if rate is None or manifest.total_steps is None:
            return None
        seconds = 1 / rate
        # An epoch's evaluation takes time, too.
        if self._epochs and (last := self._epochs[-1]).get("phase") == self._phase and last.get("seconds"):
            told = [entry.get("steps_per_epoch") for entry in manifest.phases if entry["phase"] == self._phase]
            if per_epoch := next(filter(None, reversed(told)), manifest.steps_per_epoch):
                seconds = max(seconds, last["seconds"] / per_epoch)
        return max(0, manifest.total_steps - self._last_step - 1) * seconds

    def _all_findings(self, manifest: Manifest) -> tuple[Finding, ...]:
        """Those of the table, and the manifest's, which runs without that table have, too."""
        first = manifest.finding
        if first is None or any(one.rule == "non_finite" for one in self._findings):
            return tuple(self._findings)
        what = "the loss" if first["tensor"] is None else f"{first['quantity'] or 'a norm'} of {first['tensor']}"
        found = Finding(first["step"], "non_finite", first["tensor"], None, None, f"{what} was not finite")
        return tuple(sorted([*self._findings, found], key=lambda one: one.step))


def _stretches(phases: pa.ChunkedArray[Any]) -> Iterator[tuple[str | None, int, int]]:
    """Each stretch of rows of one phase: the phase, its first row, and the row after its last."""
    encoded: Any = phases.combine_chunks()
    index, there = numbers(encoded.indices)
    index = np.where(there, index, -1)
    edges = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]
    for first, end in itertools.pairwise(edges):
        yield encoded[first].as_py(), first, end


def _utc(microseconds: int | None) -> datetime | None:
    """A time in microseconds since 1970; None where it lies beyond what a datetime can hold."""
    try:
        return None if microseconds is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    except OverflowError:
        return None
