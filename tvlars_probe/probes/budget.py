"""The share of a run's time that its probes may take together, and which measurements it leaves out."""

from __future__ import annotations

import collections
import math
import statistics
import time
from typing import TYPE_CHECKING, Any, TypeVar

from tvlars_probe.admission import numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

T = TypeVar("T")

_REMEMBERED = 64
"""Steps whose median duration stands for that of the steps to come."""


class ProbeBudget:
    """Decides which measurements a run can afford. Early steps get more of it, since they decide on large batches.

    After n of N updates all measurements together may have taken b·T·√((n + 1)/N), with b the budget and T the run's
    whole time, which the median step so far foretells: half of the budget may be spent in the first quarter of the run.
    Where N isn't known, they may have taken b of the time so far. A probe's first measurement is always made: what it
    takes isn't known before.

    Args:
        share: b, above 0 and at most 1; None sets no limit.
        total_steps: N, if known.

    Raises:
        UserError: the share is outside its range.
    """

    def __init__(self, share: float | None, total_steps: int | None) -> None:
        self.share = None if share is None else numbers.share("probe_budget", share, "the run")
        self._total_steps = total_steps
        self._began, self._spent = time.perf_counter(), 0.0
        self._lasts: dict[str, float] = {}
        self._of_each: dict[str, float] = {}
        self._steps: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self._previous: tuple[float, float] | None = None
        self._left_out: dict[str, tuple[int, int, int]] = {}  # how many, the first step, the last
        self._made: collections.Counter[str] = collections.Counter()
        self._waits: collections.Counter[str] = collections.Counter()

    def step_begins(self) -> None:
        """An update is about to be made: the time since the one before, without probes, was a step's."""
        if self.share is None:
            return
        now = time.perf_counter() - self._began
        if self._previous is not None:
            self._steps.append(max(now - self._previous[0] - (self._spent - self._previous[1]), 0.0))
        self._previous = now, self._spent

    def affords(self, name: str, step: int) -> bool:
        """Whether one more measurement by the probe ``name`` before update ``step`` fits, if it lasts as its last."""
        if self.share is None or name not in self._lasts:
            return True
        last, allowed = self._lasts[name], self._allowed(step, self._lasts[name])
        # A cheap probe doesn't take the time for which a dear one waits: it then has no more than an equal share.
        others_wait = any(number for other, number in self._waits.items() if other != name)
        fair = allowed / len(self._lasts) if others_wait else allowed
        return self._of_each.get(name, 0.0) + last <= fair and self._spent + last <= allowed

    def _allowed(self, step: int, last: float) -> float:
        assert self.share is not None
        if not self._total_steps or not self._steps:
            return self.share * (time.perf_counter() - self._began + last)
        # What probes take is part of the time that the budget is a share of.
        whole = statistics.median(self._steps) * self._total_steps / max(1 - self.share, 1e-9)
        return self.share * whole * math.sqrt(min((step + 1) / self._total_steps, 1.0))

    def made(self, name: str, seconds: float) -> None:
        """A measurement was made, or came to nothing; it took so long."""
        self._spent, self._lasts[name] = self._spent + seconds, seconds
        self._of_each[name] = self._of_each.get(name, 0.0) + seconds
        self._made[name] += 1
        self._waits[name] = 0

    def went_on(self, name: str, seconds: float) -> None:
        """The last measurement by the probe ``name`` has gone on after the update, and took so much longer."""
        self._spent, self._lasts[name] = self._spent + seconds, self._lasts[name] + seconds
        self._of_each[name] += seconds

    def left_out(self, name: str, step: int) -> None:
        """A measurement that was due has been left out."""
        number, first, _ = self._left_out.get(name, (0, step, step))
        self._left_out[name] = number + 1, first, step
        self._waits[name] += 1

    def notes(self, earlier: Iterable[str] = ()) -> list[str]:
        """What was left out in the whole run, a sentence for each probe, after ``earlier`` notes without older such."""
        begins = "the probe budget of "
        told = {
            f" measurements by {name}, in steps ": f"{begins}{self.share:.3g} of the run's time left out {number:,} of "
            f"{number + self._made[name]:,} measurements by {name}, in steps {first:,} to {last:,}"
            for name, (number, first, last) in self._left_out.items()
        }
        kept = [note for note in earlier if not (note.startswith(begins) and any(part in note for part in told))]
        return [*kept, *told.values()]

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which the budget goes on after a resume."""
        elapsed = time.perf_counter() - self._began
        return {
            "elapsed": elapsed,
            "spent": self._spent,
            "lasts": dict(self._lasts),
            "of_each": dict(self._of_each),
            "steps": [*self._steps],
            "left_out": {name: [*figures] for name, figures in self._left_out.items()},
            "made": dict(self._made),
            "waits": dict(self._waits),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`: time between two sessions is no part of the run.

        One that holds numbers beyond any time or count is passed over: the budget then begins anew.
        """
        try:
            elapsed, spent = _finite(state.get("elapsed", 0.0)), _finite(state.get("spent", 0.0))
            lasts, of_each = (_numbers(state.get(key, {}), _finite) for key in ("lasts", "of_each"))
            made, waits = (_numbers(state.get(key, {}), _whole) for key in ("made", "waits"))
            steps = [*map(_finite, state.get("steps", ()))]
            told = {name: tuple(map(_whole, figures)) for name, figures in state.get("left_out", {}).items()}
        except (ValueError, OverflowError):
            return
        self._began, self._spent = time.perf_counter() - elapsed, spent
        self._lasts, self._of_each = lasts, of_each
        self._steps.extend(steps)
        self._made.update(made)
        self._waits.update(waits)
        self._left_out = {name: (x[0], x[1], x[2]) for name, x in told.items() if len(x) == 3}


def _numbers(values: Mapping[str, float], read: Callable[[float], T]) -> dict[str, T]:
    return {name: read(value) for name, value in values.items()}


def _finite(value: float) -> float:
    """A number as a float.

    Raises:
        ValueError: it isn't finite.
        OverflowError: it is beyond any float.
    """
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{found} is no time")
    return found


def _whole(value: float) -> int:
    return int(_finite(value))
