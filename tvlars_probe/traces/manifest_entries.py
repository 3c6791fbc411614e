"""The entries of a manifest's fields, against which a manifest is checked when it is read.

What is required must be there, and what is named must have the type given. Entries may hold more.
"""

# No "from __future__ import annotations" here: it makes strings of annotations, and TypedDict would take every key for
# required.

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict


class DataEntry(TypedDict):
    """The data set: its name, and the number of samples in each part."""

    name: str
    train: int
    val: int
    test: int
    fingerprint: NotRequired[str | None]


class ModelEntry(TypedDict):
    """The model: its name, and the number of its parameters."""

    name: str
    parameters: int


class PhaseEntry(TypedDict):
    """A phase of training."""

    phase: str
    first_step: NotRequired[int]
    epochs: NotRequired[int | None]
    steps_per_epoch: NotRequired[int | None]
    batch_size: NotRequired[int | None]
    schedule: NotRequired[str | None]
    peak_lr: NotRequired[float | None]


class MomentumEntry(TypedDict):
    """An optimizer's momentum: its form and its factor β."""

    form: str
    beta: float


class GroupEntry(TypedDict):
    """A parameter group, and what its optimizer does to it."""

    optimizer: str
    optimizer_index: NotRequired[int]
    group: NotRequired[int]
    phase: NotRequired[str]
    lr: NotRequired[float | None]
    eta: NotRequired[float | None]
    momentum: NotRequired[MomentumEntry | None]
    weight_decay: NotRequired[float | None]
    variant: NotRequired[dict[str, Any] | None]
    phi: NotRequired[dict[str, float] | None]
    description: NotRequired[dict[str, Any] | None]
    parameters: NotRequired[int]


class ParameterEntry(TypedDict):
    """A row of the table of parameters."""

    name: str
    layer: NotRequired[str | None]
    kind: NotRequired[str | None]
    shape: NotRequired[list[int]]
    numel: NotRequired[int]
    optimizer: NotRequired[int | None]
    group: NotRequired[int | None]
    adapted: NotRequired[bool | None]
    decayed: NotRequired[bool | None]
    trainable: NotRequired[bool | None]
    aliases: NotRequired[list[str]]


class SegmentEntry(TypedDict):
    """An uninterrupted stretch of the run."""

    first_step: int
    last_step: int | None
    start: NotRequired[str]


class FindingEntry(TypedDict):
    """The first step with something that was not finite, and the first bad tensor in it; all of them, if several."""

    step: int
    loss: float | None
    tensor: str | None
    quantity: str | None
    tensors: NotRequired[list[str]]


class GapEntry(TypedDict):
    """A stretch of steps that a table lacks."""

    table: str
    first_step: int
    last_step: int | None
    reason: str


class BestEntry(TypedDict):
    """The best checkpoint."""

    step: int
    metric: str
    value: float


class ManifestEntries(TypedDict, total=False):
    """The fields of a manifest that have entries."""

    data: DataEntry | None
    model: ModelEntry | None
    phases: list[PhaseEntry]
    groups: list[GroupEntry]
    parameters: dict[str, list[ParameterEntry]]
    segments: list[SegmentEntry]
    finding: FindingEntry | None
    gaps: list[GapEntry]
    best: BestEntry | None
    final: dict[str, float | str | None]


def first_filled(groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry of the first group that holds a parameter; an empty one where none does.

    Args:
        groups: a manifest's entries of parameter groups.
    """
    return next((group for group in groups if group.get("parameters") != 0), {})
