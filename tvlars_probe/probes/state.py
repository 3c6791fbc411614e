"""What a recorder and its probes need to continue, checked before a run is touched.

Annotations are evaluated in this module, as in `tvlars_probe.traces.manifest_entries`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from tvlars_probe.traces.plain_types import mismatches, shown


class SharpnessState(TypedDict):
    """A sharpness probe's state: eigenvectors, and seconds of the run and of its measurements."""

    vectors: dict[str, Tensor]
    count: NotRequired[int]
    elapsed: NotRequired[float]
    spent: NotRequired[float]
    last: NotRequired[float]


class RecorderState(TypedDict):
    """The recorder's state after ``step`` updates."""

    step: int
    samples: int | None
    phase: str
    rates: dict[str, float]
    run_id: NotRequired[str | None]
    last_epoch: NotRequired[int | None]
    probes: NotRequired[list[dict[str, Any]]]


def faults(state: Mapping[str, Any]) -> Iterator[str]:
    """What of a state can't be what ``state_dict()`` gave."""
    if lacking := sorted(RecorderState.__required_keys__ - state.keys()):
        yield f"it lacks {', '.join(lacking)}"
        return
    if wrong := mismatches(RecorderState, state):
        yield from wrong
        return
    for name in ("step", "samples", "last_epoch"):
        if (count := state.get(name)) is not None and count < 0:
            yield f"{name} is {shown(count)}"
    if (last := state.get("last_epoch")) is not None and last > state["step"]:
        yield f"its last epoch ended after {shown(last)} updates of {shown(state['step'])}"
    yield from (
        f"the rate of {shown(n)} is {shown(r)}" for n, r in state["rates"].items() if isinstance(r, str) or r < 0
    )
