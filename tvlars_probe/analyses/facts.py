"""What an analysis must know of a run besides its rows: the manifest, boiled down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.group_entries import from_entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvlars_probe.traces.manifest import Manifest

_ASIDE = {"place", "recording", "sharpness", "seed", "mode", "batch_size", "epochs"}
"""Sections of a configuration that settings don't count, or that have a field of their own."""

_OWN_FIELDS = {
    "schedule.name", "data.name", "data.folder", "data.download", "model.name", "optimizer.name", "optimizer.lr",
    "optimizer.lmbda",
}  # fmt: skip
_OF_GROUPS = ("weight_decay", "decay_form", "momentum", "eta", "eps", "variant")

PARAMETER_COLUMNS = ("name", "layer", "kind", "shape", "numel", "optimizer", "group", "adapted", "decayed")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run's settings, from its manifest; what isn't known is None.

    Attributes:
        name: of its directory.
        status: running, completed, diverged, interrupted, failed or killed.
        phase: train, pretrain or linear.
        optimizer: class of the first parameter group's optimizer ("LARS").
        schedule: none, cosine, lars-warm, ...
        peak_lr: largest rate of the schedule.
        lr: rate as it was asked for, before the schedule.
        batch_size: global batch.
        lmbda: TVLARS' λ.
        seed: of everything random.
        data: name of the data set.
        model: name of the model.
        train_samples: size of the training data.
        steps_per_epoch: updates per epoch.
        first_step: of the phase.
        epochs: planned.
        total_steps: updates planned, over all phases.
        finding: a loss that was not finite: step, tensor.
        groups: per parameter group, what its optimizer does to it, as in the manifest.
        parameters: the manifest's table of parameters of this phase.
        config: the whole configuration.
    """

    name: str
    status: str = "completed"
    phase: str = "train"
    optimizer: str | None = None
    schedule: str | None = None
    peak_lr: float | None = None
    lr: float | None = None
    batch_size: int | None = None
    lmbda: float | None = None
    seed: int | None = None
    data: str | None = None
    model: str | None = None
    train_samples: int | None = None
    steps_per_epoch: int | None = None
    first_step: int = 0
    epochs: int | None = None
    total_steps: int | None = None
    finding: Mapping[str, Any] | None = None
    groups: Sequence[Mapping[str, Any]] = ()
    parameters: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(PARAMETER_COLUMNS)), repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_manifest(cls, manifest: Manifest, *, name: str, status: str, phase: str | None = None) -> RunFacts:
        """The facts of one phase (the first one by default)."""
        m, phases = manifest, list(manifest.parameters)
        chosen = phase or next(iter(phases), "train")
        groups = [g for g in m.groups if g.get("phase", chosen) == chosen]
        group, schedule, data = groups[0] if groups else {}, m.config.get("schedule"), m.data or {}
        own = next((p for p in m.phases if p.get("phase") == chosen), {})
        epochs = m.config.get("epochs")
        named = schedule.get("name") if isinstance(schedule, dict) else None
        rows = pd.DataFrame(m.parameters.get(chosen, [])).reindex(columns=list(PARAMETER_COLUMNS))
        return cls(
            name=name,
            status=status,
            phase=chosen,
            optimizer=group.get("optimizer"),
            schedule=own.get("schedule", named),
            peak_lr=own.get("peak_lr", m.peak_lr),
            lr=_asked_rate(m.config, group, m.peak_lr) if chosen == next(iter(phases), chosen) else None,
            batch_size=own.get("batch_size", m.batch_size),
            lmbda=(group.get("phi") or {}).get("lmbda"),
            seed=m.seed,
            data=data.get("name"),
            model=(m.model or {}).get("name"),
            train_samples=data.get("train"),
            first_step=own.get("first_step", 0),
            epochs=own.get("epochs", epochs if isinstance(epochs, int) else None),
            steps_per_epoch=own.get("steps_per_epoch", m.steps_per_epoch),
            total_steps=m.total_steps,
            finding=m.finding,
            groups=groups,
            parameters=rows,
            config=m.config,
        )

    @property
    def method(self) -> str:
        """How the run was trained, in a few words: optimizer and schedule."""
        optimizer = self.optimizer or "unknown optimizer"
        return optimizer if self.schedule in (None, "none") else f"{optimizer}, {self.schedule}"

    @property
    def settings(self) -> dict[str, object]:
        """Whatever else may change the run's result, by name; neither its rate, schedule and seed, nor where it ran."""
        if isinstance(self.config.get("optimizer"), dict):
            told = _flat({name: value for name, value in self.config.items() if name not in _ASIDE})
        else:
            told = _flat({"group": [{name: group.get(name) for name in _OF_GROUPS} for group in self.groups]})
        kept = {name: value for name, value in told.items() if name not in _OWN_FIELDS}
        return kept | {"data": self.data, "model": self.model, "epochs": self.epochs}

    def group_of(self, parameters: Sequence[str]) -> list[Mapping[str, Any]]:
        """Each parameter's group in the manifest; an empty one where it isn't told."""
        rows = self.parameters.set_index("name")
        held = rows.dropna(subset=["optimizer", "group"])
        sizes = held.groupby("optimizer")["group"].max() + 1 if len(held) else pd.Series(dtype=float)
        first = {optimizer: int(sizes[sizes.index < optimizer].sum()) for optimizer in sizes.index}
        place = {name: first[row.optimizer] + int(row.group) for name, row in held.iterrows()}
        known = range(len(self.groups))
        return [self.groups[place[p]] if place.get(p) in known else {} for p in parameters]

    def descriptions_of(self, parameters: Sequence[str]) -> list[GroupDescription]:
        """What each parameter's group does to it; unknown where that isn't told."""
        known = {id(group): from_entry(group) for group in self.groups}
        nobody = GroupDescription.unknown("")
        return [known.get(id(group), nobody) for group in self.group_of(parameters)]

    def flag(self, column: str, parameters: Sequence[str]) -> list[bool | None]:
        """A yes-or-no column of the table of parameters, None where it isn't told."""
        told = {
            name: bool(value)
            for name, value in zip(self.parameters["name"], self.parameters[column], strict=True)
            if value is not None and not pd.isna(value)
        }
        return [told.get(p) for p in parameters]


def _flat(value: Any, prefix: str = "") -> dict[str, object]:
    """Nested entries by dotted name."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    else:
        return {prefix: value}
    return {key: leaf for name, item in pairs for key, leaf in _flat(item, f"{prefix}.{name}".strip(".")).items()}


def _asked_rate(config: Mapping[str, Any], group: Mapping[str, Any], peak_lr: float | None) -> float | None:
    """``--lr`` as it was given. The manifest's group holds the rate after the last step, which a schedule changed."""
    asked = config.get("optimizer")
    if isinstance(asked, dict) and isinstance(asked.get("lr"), int | float):
        return float(asked["lr"])
    return peak_lr if peak_lr is not None else group.get("lr")
