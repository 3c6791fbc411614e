"""What a view shows of one run while it trains, as plain frozen data: `LiveState`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.live.own_medians import Far

RUNNING, GONE, DAMAGED = "running", "gone", "damaged"
"""The statuses that may pass: the run goes on, there is none at the path, its manifest can't be read."""

QUANTITIES = ("trust_ratio", "grad_norm", "relative_update")
"""The figures of which a state holds the tensors furthest from their own median; the last one is ‖Δw‖/‖w‖."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Furthest:
    """The tensors that are furthest from their own median in one recorded step.

    Attributes:
        step: the last step in which the quantity was recorded; None where it never was.
        tensors: the furthest first.
    """

    step: int | None = None
    tensors: tuple[Far, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TopEigenvalue:
    """The largest eigenvalue that was measured last with an operator.

    Attributes:
        step: the state it is of.
        operator: hessian, effective or relative.
        value: the eigenvalue.
        error: of the value, absolute; None where it isn't known.
        limit: the value beyond which a quadratic diverges; None where it isn't known.
        converged: whether the error is as small as was asked for.
    """

    step: int
    operator: str
    value: float
    error: float | None
    limit: float | None
    converged: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveState:
    """A run at one moment. What isn't known is None or empty.

    Attributes:
        name: name of the run directory.
        path: the run directory.
        run_id: the run's unique name.
        status: running, completed, diverged, interrupted, failed, killed; "gone" where no run is there any more, and
            "damaged" where its manifest can't be read.
        trouble: why the run or its trace can't be read; what else is here was read before.
        notes: the manifest's notes, the latest one last: of a failed run it says why.
        steps_done: updates on record.
        steps_total: updates of the whole run.
        phase: the phase that the last step belongs to.
        losses: pairs of step and loss of this phase, a few hundred at most; see `tvlars_probe.live.loss_curve`.
        loss: the last loss.
        rate: steps per second, without pauses.
        seconds_left: until the last step, evaluations included where epochs were recorded.
        grad_norm: ‖g‖₂ over all parameters in the last step that has it.
        lr: learning rate of the first parameter group.
        furthest: by quantity (`QUANTITIES`), the tensors furthest from their own median.
        sharpness: the last top eigenvalue of each operator.
        findings: what rules have found, the newest last; of very many the newest ones.
        finding_count: how many there are.
        epoch: the last epoch's row, without what it lacks.
        last_time: when the last step on record ended.
    """

    name: str
    path: str
    run_id: str | None = None
    status: str
    trouble: str | None = None
    notes: tuple[str, ...] = ()
    steps_done: int = 0
    steps_total: int | None = None
    phase: str | None = None
    losses: tuple[tuple[int, float], ...] = ()
    loss: float | None = None
    rate: float | None = None
    seconds_left: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    furthest: Mapping[str, Furthest] = field(default_factory=dict)
    sharpness: tuple[TopEigenvalue, ...] = ()
    findings: tuple[Finding, ...] = ()
    finding_count: int = 0
    epoch: Mapping[str, Any] = field(default_factory=dict)
    last_time: datetime | None = None

    @property
    def may_go_on(self) -> bool:
        """Whether a view should go on looking: the run trains, or can't be read just now."""
        return self.status in (RUNNING, DAMAGED)

    def age(self, now: datetime | None = None) -> float | None:
        """Seconds since the last step on record ended; None where there is none. Rows come with a flush."""
        return None if self.last_time is None else ((now or datetime.now(UTC)) - self.last_time).total_seconds()

    def as_plain(self) -> dict[str, Any]:
        """The state as JSON holds it: lists, dictionaries, texts and numbers; None for what isn't finite."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return None if isinstance(value, float) and not math.isfinite(value) else value
