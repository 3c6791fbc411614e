"""What stands inside a manifest's fields: the shape of their entries, which a manifest is checked against when read.

Entries may hold more than is named here; what is named is of the type given, and what is required is there. Annotations
are evaluated in this module: as strings they would hide from `TypedDict` what is not required.
"""

from typing import Any, NotRequired, TypedDict


class Data(TypedDict):
    """The data set: its name, and the number of samples in each part."""

    name: str
    train: int
    val: int
    test: int
    fingerprint: NotRequired[str | None]


class Model(TypedDict):
    """The model: its name, and the number of its parameters."""

    name: str
    parameters: int


class Phase(TypedDict):
    """A phase of training."""

    phase: str
    first_step: NotRequired[int]
    epochs: NotRequired[int | None]
    steps_per_epoch: NotRequired[int | None]
    batch_size: NotRequired[int | None]
    schedule: NotRequired[str | None]
    peak_lr: NotRequired[float | None]


class Momentum(TypedDict):
    """An optimizer's momentum."""

    form: str
    beta: float


class Group(TypedDict):
    """A parameter group: what its optimizer does to it."""

    optimizer: str
    phase: NotRequired[str]
    lr: NotRequired[float | None]
    eta: NotRequired[float | None]
    momentum: NotRequired[Momentum | None]
    weight_decay: NotRequired[float | None]
    variant: NotRequired[dict[str, Any] | None]
    phi: NotRequired[dict[str, float] | None]
    parameters: NotRequired[int]


class Parameter(TypedDict):
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


class Segment(TypedDict):
    """An uninterrupted stretch of the run."""

    first_step: int
    last_step: int | None
    start: NotRequired[str]


class Finding(TypedDict):
    """What was not finite."""

    step: int
    loss: float | None
    tensor: str | None
    quantity: str | None


class Gap(TypedDict):
    """A stretch that a table lacks."""

    table: str
    first_step: int
    last_step: int | None
    reason: str


class Best(TypedDict):
    """The best checkpoint."""

    step: int
    metric: str
    value: float


class Entries(TypedDict, total=False):
    """The manifest's fields that have entries."""

    data: Data | None
    model: Model | None
    phases: list[Phase]
    groups: list[Group]
    parameters: dict[str, list[Parameter]]
    segments: list[Segment]
    finding: Finding | None
    gaps: list[Gap]
    best: Best | None
    final: dict[str, float | str | None]
