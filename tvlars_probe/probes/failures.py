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
POLICIES: tuple[str, ...] = get_args(OnProbeError)


class Probe(Protocol):
    """What a recorder calls before updates: `SharpnessProbe`, or a callback of yours.

    It must change nothing that training reads. Under a process group every rank's probe is called in the same steps.
    """

    @property
    def has_budget(self) -> bool:
        """Whether `affordable` has a say."""
        ...

    def due(self, step: int) -> bool:
        """Whether `measure` is to be called before update ``step``; the same on every rank."""
        ...

    def affordable(self) -> bool:
        """Whether its budget allows one more measurement."""
        ...

    def measure(self, step: int, phase: str, rates: Rates | None) -> dict[str, list[Any]]:
        """Columns of rows of the table ``curvature``; empty for none."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values with which it continues after a resume."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        ...


@dataclass(slots=True)
class Attempt:
    """Whether something that may fail did."""

    failed: bool = False


class ProbeFailures:
    """Keeps probes from ending a run, if asked to.

    Args:
        policy: "warn" or "raise".

    Attributes:
        found: the first failure of this process, in a sentence.
        step: when that was.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise unknown("on_probe_error", policy, POLICIES)
        self.policy = policy
        self.found: str | None = None
        self.step: int | None = None

    @contextlib.contextmanager
    def attempt(self, what: str, step: int) -> Iterator[Attempt]:
        """Inside it ``what`` is measured in ``step``.

        Yields:
            what became of it.

        Raises:
            ProbeError: it failed and the policy is "raise".
        """
        attempt = Attempt()
        try:
            yield attempt
        except (UserError, RunFailedError):
            raise
        except Exception as error:
            reason = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
            text = f"{what} failed at step {step}: {reason}"
            if self.policy == "raise":
                raise ProbeError(f"{text} (on_probe_error 'warn' would go on without it)") from error
            self.found, self.step, attempt.failed = self.found or text, step, True

    def announce(self, manifest: Manifest, step: int) -> None:
        """Say, once and in the manifest, that layers and curvature are recorded no longer."""
        text = f"{self.found or 'a probe of another rank failed'}; layers and curvature are not recorded from there on"
        first = step if self.step is None else self.step
        manifest.notes.append(text)
        manifest.gaps += [Gap(table, first, None, self.found or text) for table in ("layers", "curvature")]
        warnings.warn(text, RuntimeWarning, stacklevel=2)
