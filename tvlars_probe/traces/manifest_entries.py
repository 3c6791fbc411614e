"""What stands inside a manifest's fields: the shape of their entries, which a manifest is checked against when read.

Entries may hold more than is named here; what is named is of the type given, and what is required is there. Annotations
are evaluated in this module: as strings they would hide from `TypedDict` what is not required.
"""

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
    """An optimizer's momentum."""

    form: str
    beta: float


class GroupEntry(TypedDict):
    """A parameter group: what its optimizer does to it."""

    optimizer: str
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


class SegmentEntry(TypedDict):
    """An uninterrupted stretch of the run."""

    first_step: int
    last_step: int | None
    start: NotRequired[str]


class FindingEntry(TypedDict):
    """What was not finite."""

    step: int
    loss: float | None
    tensor: str | None
    quantity: str | None


class GapEntry(TypedDict):
    """A stretch that a table lacks."""

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
    """The manifest's fields that have entries."""

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
