"""The probes of a run: called before updates, and some just after them, in the same steps on every rank."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.probes.budget import ProbeBudget
    from tvlars_probe.probes.failures import Probe, ProbeFailures
    from tvlars_probe.traces.journal import Journal


class Probing:
    """Calls probes before updates, and some of them again just after, until one of them fails on any rank.

    Args:
        probes: the probes of this process.
        failures: applies the policy when a probe raises.
        budget: what they may take together.

    Attributes:
        is_on: whether measurements go on; false from `stop` on.
    """

    def __init__(self, probes: Sequence[Probe], failures: ProbeFailures, budget: ProbeBudget) -> None:
        self._failures, self.budget = failures, budget
        self._probes = _named(probes)
        self._following: dict[str, Any] = {}
        self._step = 0
        self.is_on = True

    def replace(self, probes: Sequence[Probe]) -> None:
        """Go on with other probes; after `stop`, with none."""
        self._probes = _named(probes) if self.is_on else {}
        self._forget()

    def stop(self) -> None:
        """Measure nothing from now on."""
        self._probes.clear()
        self._forget()
        self.is_on = False

    def _forget(self) -> None:
        """Let go of what waits for an update that was never whole, with the copies of the weights."""
        following, self._following = self._following, {}
        for probe in following.values():
            if (forget := getattr(probe, "forget", None)) is not None:
                forget()

    @property
    def has_failed_here(self) -> bool:
        """Whether something has failed in this process of which the other ranks may not know yet."""
        return self.is_on and self._failures.found is not None

    def measure(
        self, step: int, phase: str, rates: Callable[[], Rates | None], ranks: Ranks, journal: Journal | None
    ) -> bool:
        """Let the probes measure the state before update ``step``; every rank takes part.

        Args:
            step: index of the update.
            phase: name of the training phase.
            rates: gives the rates applied in the step before, None before the first; called only where a probe
                measures.
            ranks: the ranks of the run.
            journal: takes the rows; None on ranks other than 0.

        Returns:
            False where a probe has failed on any rank: the caller then calls `stop`.
        """
        self.budget.step_begins()
        self._forget()
        self._step = step
        for key, probe in self._probes.items():
            # A probe whose ``due`` raises counts as due, so that its failure reaches the agreement below.
            name, due = type(probe).__name__, True
            with self._failures.attempt(name, step) as asked:
                due = probe.due(step)
            if not due or not self._affords(key, step, ranks):
                continue
            measured, began = asked, time.perf_counter()
            if not asked.failed:
                with self._failures.attempt(name, step) as measured:
                    columns = probe.measure(step, phase, rates())
                    if journal is not None and columns:
                        journal.append(getattr(probe, "table", "curvature"), columns)
                    if getattr(probe, "follows_update", False):
                        following: Any = probe
                        following.remember()
                        self._following[key] = following
            self.budget.made(key, time.perf_counter() - began)
            # After each probe: the next one may sum over the ranks, and would wait for one that has failed.
            if ranks.any(measured.failed):
                return False
        return True

    def _affords(self, key: str, step: int, ranks: Ranks) -> bool:
        """Whether the probe's own budget, and that of all probes, allow a measurement that is due."""
        probe = self._probes[key]
        # Elapsed time differs from rank to rank: rank 0's budget decides, or some would measure and others not.
        if probe.has_budget and not ranks.flag_of_first(probe.affordable()):
            return False
        if self.budget.share is None or ranks.flag_of_first(self.budget.affords(key, step)):
            return True
        self.budget.left_out(key, step)
        return False

    @property
    def awaits_update(self) -> bool:
        """Whether probes wait for the update of the step in which they have measured."""
        return bool(self._following)

    def measure_update(self, phase: str, lr: float, ranks: Ranks, journal: Journal | None) -> bool:
        """Let the probes that wait for it measure the update just made; every rank takes part.

        Args:
            phase: name of the training phase.
            lr: learning rate of the first parameter group in it.
            ranks: the ranks of the run.
            journal: takes the rows; None on ranks other than 0.

        Returns:
            False where a probe has failed on any rank: the caller then calls `stop`.
        """
        following, self._following = self._following, {}
        for key, probe in following.items():
            began = time.perf_counter()
            with self._failures.attempt(type(probe).__name__, self._step) as measured:
                columns = probe.measure_update(self._step, phase, lr)
                if journal is not None and columns:
                    journal.append(getattr(probe, "table", "curvature"), columns)
            self.budget.went_on(key, time.perf_counter() - began)
            if ranks.any(measured.failed):
                return False
        return True

    def states(self, step: int, ranks: Ranks) -> list[dict[str, Any]] | None:
        """Return the states from which the probes continue after ``step`` updates.

        Returns:
            a state per probe; None where a probe has failed on any rank: the caller then calls `stop`.
        """
        states, failed = [], False
        for probe in self._probes.values():
            with self._failures.attempt(f"{type(probe).__name__}.state_dict", step) as attempt:
                states.append(probe.state_dict())
            failed |= attempt.failed
        # Without probes there is nothing to agree on: all ranks have as many, so all of them skip the collective.
        return None if self._probes and ranks.any(failed) else states


def _named(probes: Sequence[Probe]) -> dict[str, Probe]:
    """The probes by the names of their classes, and a number where several have one."""
    named: dict[str, Probe] = {}
    for probe in probes:
        name = type(probe).__name__
        alike = sum(type(other).__name__ == name for other in named.values())
        named[f"{name} {alike + 1}" if alike else name] = probe
    return named
