"""What is measured before updates: the probes of a run, called in the same steps on every rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.probes.failures import Probe, ProbeFailures
    from tvlars_probe.traces.journal import Journal


class Probing:
    """Calls probes before updates, until one of them fails on any rank.

    Args:
        probes: of this process.
        failures: what happens when one raises.

    Attributes:
        is_on: whether nothing has failed so far.
    """

    def __init__(self, probes: Sequence[Probe], failures: ProbeFailures) -> None:
        self._probes, self._failures = list(probes), failures
        self.is_on = True

    def replace(self, probes: Sequence[Probe]) -> None:
        """Go on with others, if anything is measured any more."""
        self._probes = list(probes) if self.is_on else []

    def stop(self) -> None:
        """Measure nothing any more."""
        self._probes.clear()
        self.is_on = False

    @property
    def has_failed_here(self) -> bool:
        """Whether something has failed in this process, and the others may not know yet."""
        return self.is_on and self._failures.found is not None

    def measure(
        self, step: int, phase: str, rates: Callable[[], Rates | None], ranks: Ranks, journal: Journal | None
    ) -> bool:
        """Let the probes measure the state before update ``step``; every rank takes part.

        Args:
            step: index of the update.
            phase: of training.
            rates: applied in the step before, None before the first; asked for only where a probe measures.
            ranks: of the run.
            journal: where the rows go, on the rank that has one.

        Returns:
            False where a probe has failed on any rank: `stop` is due.
        """
        for probe in self._probes:
            name, due = type(probe).__name__, True  # one that can't tell has failed, and is asked no more
            with self._failures.attempt(name, step) as asked:
                due = probe.due(step)
            # Time differs from rank to rank, so the first one's budget counts for all.
            if not due or (probe.has_budget and not ranks.flag_of_first(probe.affordable())):
                continue
            measured = asked
            if not asked.failed:
                with self._failures.attempt(name, step) as measured:
                    columns = probe.measure(step, phase, rates())
                    if journal is not None and columns:
                        journal.append("curvature", columns)
            if ranks.any(measured.failed):
                return False
        return True

    def states(self, step: int, ranks: Ranks) -> list[dict[str, Any]] | None:
        """What the probes need to continue after ``step``; None where one has failed on any rank: `stop` is due."""
        states, failed = [], False
        for probe in self._probes:
            with self._failures.attempt(f"{type(probe).__name__}.state_dict", step) as attempt:
                states.append(probe.state_dict())
            failed |= attempt.failed
        return None if self._probes and ranks.any(failed) else states
