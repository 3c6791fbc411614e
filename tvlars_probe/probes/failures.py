"""What happens when a probe raises: the training goes on unmeasured, or ends."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from tvlars_probe.errors import ProbeError, RunFailedError, UserError, unknown
from tvlars_probe.traces.gaps import Gap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.traces.manifest import Manifest

OnProbeError = Literal["warn", "raise"]
"""What a failure does: "warn" goes on without layers and curvature, "raise" ends the run."""

POLICIES: tuple[str, ...] = get_args(OnProbeError)


class Probe(Protocol):
    """What a recorder calls before updates: `SharpnessProbe`, or a callback of yours.

    It must change nothing that training reads. Under a process group every rank's probe is called in the same steps.
    Its rows go to the table ``curvature``, or to the one that its attribute ``table`` names.

    A probe may measure the update, too: see `UpdateProbe`.
    """

    @property
    def has_budget(self) -> bool:
        """Whether the probe has a budget, and `affordable` is asked."""
        ...

    def due(self, step: int) -> bool:
        """Whether `measure` is to be called before update ``step``; the same on every rank."""
        ...

    def affordable(self) -> bool:
        """Whether the budget allows one more measurement; rank 0's answer holds for all ranks."""
        ...

    def measure(self, step: int, phase: str, rates: Rates | None) -> dict[str, list[Any]]:
        """Measure the state before update ``step``.

        Args:
            step: index of the update.
            phase: name of the training phase.
            rates: the rates applied in the step before; None before the first, and where parameters are DTensors.

        Returns:
            rows of the probe's table, as a list per column; {} for no row.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and plain values from which the probe continues after a resume."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        ...


class UpdateProbe(Probe, Protocol):
    """A probe that also measures the update itself: a recorder calls it once more, just after update t.

    With several optimizers that is after the last one's update, in steps in which all of them make one.
    """

    @property
    def follows_update(self) -> bool:
        """Whether `remember` and `measure_update` are to be called in steps in which `measure` is."""
        ...

    def remember(self) -> None:
        """Copy what is needed of the weights before update t; called after `measure`.

        Where the update is never whole, the method ``forget`` of a probe that has one is called before the next step.
        """
        ...

    def measure_update(self, step: int, phase: str, lr: float) -> dict[str, list[Any]]:
        """Measure the update just made. What training reads must be, to the bit, what it was.

        Args:
            step: t, the index of the update: the state that is measured is still that before it.
            phase: name of the training phase.
            lr: learning rate of the first parameter group in it.

        Returns:
            rows of the probe's table, as a list per column; {} for no row.
        """
        ...


@dataclass(slots=True)
class Attempt:
    """What became of a block guarded by `ProbeFailures.attempt`.

    Attributes:
        failed: whether the block raised and the training goes on.
    """

    failed: bool = False


class ProbeFailures:
    """Applies the policy for probes that raise.

    Args:
        policy: "warn" or "raise", see `OnProbeError`.

    Attributes:
        found: the first failure of this process, in a sentence; None while there is none.
        step: the step of the latest failure.

    Raises:
        UserError: an unknown policy.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise unknown("on_probe_error", policy, POLICIES)
        self.policy = policy
        self.found: str | None = None
        self.step: int | None = None

    @contextlib.contextmanager
    def attempt(self, what: str, step: int) -> Iterator[Attempt]:
        """Guard a block that measures ``what`` in ``step``.

        Yields:
            what became of the block, complete when the block is left.

        Raises:
            ProbeError: the block raised, and the policy is "raise".
        """
        attempt = Attempt()
        try:
            yield attempt
        # Under either policy these end the run: what was asked for is impossible, or the run has failed itself.
        except (UserError, RunFailedError):
            raise
        except Exception as error:
            # Of a message of many lines the first is enough for a note and a warning.
            reason = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
            text = f"{what} failed at step {step}: {reason}"
            if self.policy == "raise":
                raise ProbeError(f"{text} (on_probe_error 'warn' would go on without it)") from error
            # The first failure is kept: those that follow may be its consequences.
            self.found, self.step, attempt.failed = self.found or text, step, True

    def announce(self, manifest: Manifest, step: int) -> None:
        """Say in the manifest, and in a warning, that layers and curvature are no longer recorded.

        Args:
            manifest: the run's manifest.
            step: where the gaps begin if only another rank has failed; else they begin where this process failed.
        """
        text = f"{self.found or 'a probe of another rank failed'}; layers and curvature are not recorded from there on"
        first = step if self.step is None else self.step
        manifest.notes.append(text)
        manifest.gaps += [Gap(table, first, None, self.found or text) for table in ("layers", "curvature")]
        # Last, because a warning may be an error: the manifest is complete by then.
        warnings.warn(text, RuntimeWarning, stacklevel=2)
