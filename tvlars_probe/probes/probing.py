"""What is measured before updates, and of them: the probes of a run, called in the same steps on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.probes.failures import Probe, ProbeFailures
    from tvlars_probe.traces.journal import Journal


class Probing:
    """Calls probes before updates, and some of them after these, until one of them fails on any rank.

    Args:
        probes: the probes of this process.
        failures: applies the policy when a probe raises.

    Attributes:
        is_on: whether measurements go on; false from `stop` on.
    """

    def __init__(self, probes: Sequence[Probe], failures: ProbeFailures) -> None:
        self._probes, self._failures = list(probes), failures
        self._following: list[Any] = []
        self._step = 0
        self.is_on = True

    def replace(self, probes: Sequence[Probe]) -> None:
        """Go on with other probes; after `stop`, with none."""
        self._probes = list(probes) if self.is_on else []
        self._following = []

    def stop(self) -> None:
        """Measure nothing from now on."""
        self._probes.clear()
        self._following.clear()
        self.is_on = False

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
        self._following, self._step = [], step  # what waits for an update that was never whole is forgotten
        for probe in self._probes:
            # A probe whose ``due`` raises counts as due, so that its failure reaches the agreement below.
            name, due = type(probe).__name__, True
            with self._failures.attempt(name, step) as asked:
                due = probe.due(step)
            # Elapsed time differs from rank to rank: rank 0's budget decides, or some would measure and others not.
            if not due or (probe.has_budget and not ranks.flag_of_first(probe.affordable())):
                continue
            measured = asked
            if not asked.failed:
                with self._failures.attempt(name, step) as measured:
                    columns = probe.measure(step, phase, rates())
                    if journal is not None and columns:
                        journal.append(getattr(probe, "table", "curvature"), columns)
                    if getattr(probe, "follows_update", False):
                        following: Any = probe
                        following.remember()
                        self._following.append(following)
            # After each probe: the next one may sum over the ranks, and would wait for one that has failed.
            if ranks.any(measured.failed):
                return False
        return True

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
        following, self._following = self._following, []
        for probe in following:
            with self._failures.attempt(type(probe).__name__, self._step) as measured:
                columns = probe.measure_update(self._step, phase, lr)
                if journal is not None and columns:
                    journal.append(getattr(probe, "table", "curvature"), columns)
            if ranks.any(measured.failed):
                return False
        return True

    def states(self, step: int, ranks: Ranks) -> list[dict[str, Any]] | None:
        """Return the states from which the probes continue after ``step`` updates.

        Returns:
            a state per probe; None where a probe has failed on any rank: the caller then calls `stop`.
        """
        states, failed = [], False
        for probe in self._probes:
            with self._failures.attempt(f"{type(probe).__name__}.state_dict", step) as attempt:
                states.append(probe.state_dict())
            failed |= attempt.failed
        # Without probes there is nothing to agree on: all ranks have as many, so all of them skip the collective.
        return None if self._probes and ranks.any(failed) else states
