"""What a recorder and its probes need to continue, checked before a run is touched.

Annotations are evaluated in this module: as strings they would hide from `TypedDict` which keys are not required. Those
are the keys that a state of an older version may lack.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from tvlars_probe.admission.values import excess
from tvlars_probe.traces.plain_types import mismatches, shown


class SharpnessState(TypedDict):
    """A sharpness probe's state.

    Attributes:
        vectors: in states of older versions, the top eigenvector that was found last, by operator.
        count: in those, the number of measurements made.
        elapsed: seconds since the probe was made, over all sessions.
        spent: seconds of all measurements.
        last: seconds of the last one.
    """

    vectors: NotRequired[dict[str, Tensor]]
    count: NotRequired[int]
    elapsed: NotRequired[float]
    spent: NotRequired[float]
    last: NotRequired[float]


class BudgetState(TypedDict):
    """The state of a `tvlars_probe.probes.budget.ProbeBudget`.

    Attributes:
        elapsed: seconds since the recorder was made, over all sessions.
        spent: seconds of all measurements.
        lasts: seconds of each probe's last one.
        of_each: seconds of all measurements of each probe.
        steps: seconds of the last steps.
        left_out: of each probe, how many measurements were left out, and the first and last step of these.
        made: how many measurements each probe has made.
        waits: how many of each probe have been left out since its last one.
    """

    elapsed: float
    spent: float
    lasts: dict[str, float]
    of_each: dict[str, float]
    steps: list[float]
    left_out: NotRequired[dict[str, list[int]]]
    made: NotRequired[dict[str, int]]
    waits: NotRequired[dict[str, int]]


class RecorderState(TypedDict):
    """The recorder's state after ``step`` updates.

    Attributes:
        step: number of updates.
        samples: samples seen in them, over all ranks; None where unknown.
        tokens: tokens seen in them, over all ranks; None where unknown.
        phase: name of the training phase.
        rates: lr × trust_ratio of every parameter's last update, by name; NaN where the ratio isn't known.
        run_id: the run's, None on ranks other than 0.
        last_epoch: number of updates when the last epoch was logged; None before the first.
        probes: the probes' states, in their order.
        lacking: how many recorded steps have no noise, by reason; see `tvlars_probe.probes.rows.noise.REASONS`.
        budget: the state of the probes' common budget; on ranks other than 0 it decides nothing.
        findings: what the rules remember, by rule; on ranks other than 0 they have seen nothing.
    """

    step: int
    samples: int | None
    phase: str
    rates: dict[str, float]
    run_id: NotRequired[str | None]
    last_epoch: NotRequired[int | None]
    tokens: NotRequired[int | None]
    probes: NotRequired[list[dict[str, Any]]]
    lacking: NotRequired[dict[str, int]]
    budget: NotRequired[BudgetState]
    findings: NotRequired[dict[str, Any]]


def faults(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons why ``state`` can't be what ``state_dict()`` gave; none where it can."""
    # First, since lists may hold one another: what is said below of a value would be written out for ever.
    if costly := excess(dict(state)):
        yield costly
        return
    if lacking := sorted(RecorderState.__required_keys__ - state.keys()):
        yield f"it lacks {', '.join(lacking)}"
        return
    if wrong := mismatches(RecorderState, state):
        yield from wrong
        return
    for name in ("step", "samples", "tokens", "last_epoch"):
        if (count := state.get(name)) is not None and count < 0:
            yield f"{name} is {shown(count)}"
    # An epoch is logged after updates that were made.
    if (last := state.get("last_epoch")) is not None and last > state["step"]:
        yield f"its last epoch ended after {shown(last)} updates of {shown(state['step'])}"
    # `mismatches` takes the strings "nan" and "inf" for floats, since a manifest spells them so; a state holds numbers.
    # The number NaN passes: it stands for a rate that isn't known.
    yield from (
        f"the rate of {shown(n)} is {shown(r)}" for n, r in state["rates"].items() if isinstance(r, str) or r < 0
    )
