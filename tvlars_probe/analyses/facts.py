"""What an analysis must know of a run besides its rows, taken from the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from tvlars_probe.admission.names import encodable_values, printable
from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.group_entries import from_entry
from tvlars_probe.traces.manifest import is_of_loss
from tvlars_probe.traces.manifest_entries import first_filled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvlars_probe.traces.manifest import Manifest

_ASIDE = {"place", "recording", "sharpness", "noise", "seed", "mode", "batch_size", "epochs"}
"""Sections of a configuration that `RunFacts.settings` leaves out.

They say where a run computes or what it records, or `RunFacts` has a field for them.
"""

_OWN_FIELDS = {
    "schedule.name", "schedule.peak_lr", "data.name", "data.folder", "data.download", "model.name", "optimizer.name",
    "optimizer.lr", "optimizer.lmbda", "branch.run_id", "branch.batch_size", "branch.epochs", "branch.steps_per_epoch",
    "branch.passes", "branch.batches",
}  # fmt: skip
"""Single entries, by dotted name, that `RunFacts.settings` leaves out for the same reasons."""

_OF_GROUPS = ("weight_decay", "decay_form", "momentum", "eta", "eps", "variant")
"""Entries of a parameter group that stand in for a configuration where there is none."""

PARAMETER_COLUMNS = ("name", "layer", "kind", "shape", "numel", "optimizer", "group", "adapted", "decayed")
"""Columns of `RunFacts.parameters`."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RunFacts:
    """One phase of a run, as its manifest tells it; what isn't known is None.

    Attributes:
        name: name of the run's directory.
        status: running, completed, diverged, interrupted, failed or killed.
        phase: train, pretrain or linear.
        optimizer: class of the first parameter group's optimizer, such as "LARS".
        schedule: name of the schedule: none, cosine or lars-warm.
        peak_lr: largest learning rate of the schedule, of the first parameter group.
        lr: learning rate as it was asked for, before the schedule; known of the first phase only.
        batch_size: global batch size.
        lmbda: TVLARS' λ, per update.
        seed: seed of everything random.
        data: name of the data set.
        model: name of the model.
        train_samples: size of the training data.
        classes: number of classes of the data.
        steps_per_epoch: updates per epoch.
        first_step: index of the phase's first update.
        epochs: epochs planned.
        total_steps: updates planned, over all phases.
        finding: the first step with a loss or a norm that was not finite: its loss, and the first bad tensor.
        groups: the manifest's entry of each parameter group: its settings, and what its optimizer does to it.
        parameters: the manifest's table of parameters of this phase, with the columns `PARAMETER_COLUMNS`.
        config: the whole configuration.
        command: the command line that began the run.
        stride: of the recorded steps of ``layers``, every how many-th was read: above 1 where all would not fit.
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
    classes: int | None = None
    steps_per_epoch: int | None = None
    first_step: int = 0
    epochs: int | None = None
    total_steps: int | None = None
    finding: Mapping[str, Any] | None = None
    groups: Sequence[Mapping[str, Any]] = ()
    parameters: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(PARAMETER_COLUMNS)), repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    command: Sequence[str] = ()
    stride: int = 1

    @classmethod
    def from_manifest(cls, manifest: Manifest, *, name: str, status: str, phase: str | None = None) -> RunFacts:
        """The facts of one phase, by default the first.

        Args:
            manifest: the run's manifest.
            name: name of the run's directory.
            status: the run's status, which the manifest alone doesn't tell of a killed run.
            phase: name of the phase.
        """
        m, phases = manifest, list(manifest.parameters)
        chosen = phase or next(iter(phases), "train")
        groups = [g for g in m.groups if g.get("phase", chosen) == chosen]
        group, schedule, data = first_filled(groups), m.config.get("schedule"), m.data or {}
        # The manifest's own figures are those of its first phase: an entry of the phase itself goes before them.
        own = next((p for p in m.phases if p.get("phase") == chosen), {})
        epochs = m.config.get("epochs")
        named = schedule.get("name") if isinstance(schedule, dict) else None
        # Of these columns alone: entries may hold more, and a frame has room for each key of one in all others' rows.
        entries = [{name: e[name] for name in PARAMETER_COLUMNS if name in e} for e in m.parameters.get(chosen, [])]
        # reindex: a run without a table of parameters has the columns all the same.
        rows = pd.DataFrame(entries).reindex(columns=list(PARAMETER_COLUMNS))
        return cls(
            name=name,
            status=status,
            phase=chosen,
            optimizer=group.get("optimizer"),
            schedule=own.get("schedule", named),
            peak_lr=own.get("peak_lr", m.peak_lr),
            # ``--lr`` is for the first phase: the linear probe after a pretraining has learning rates of its own.
            lr=_asked_rate(m.config, group, m.peak_lr) if chosen == next(iter(phases), chosen) else None,
            batch_size=own.get("batch_size", m.batch_size),
            lmbda=(group.get("phi") or {}).get("lmbda"),
            seed=m.seed,
            data=data.get("name"),
            model=(m.model or {}).get("name"),
            train_samples=data.get("train"),
            classes=data.get("classes"),
            first_step=own.get("first_step", 0),
            epochs=own.get("epochs", epochs if isinstance(epochs, int) else None),
            steps_per_epoch=own.get("steps_per_epoch", m.steps_per_epoch),
            total_steps=m.total_steps,
            finding=m.finding,
            groups=groups,
            parameters=rows,
            config=encodable_values(m.config),
            command=m.command or (),
        )

    @property
    def chance(self) -> float | None:
        """Accuracy of equal guesses in percent; None where there are no classes to guess, or one."""
        return 100.0 / self.classes if self.classes is not None and self.classes > 1 else None

    @property
    def method(self) -> str:
        """Optimizer and schedule in a few words, such as "LARS, cosine"."""
        optimizer = self.optimizer or "unknown optimizer"
        return optimizer if self.schedule in (None, "none") else f"{optimizer}, {self.schedule}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {printable(self.title)}: {self.status}>"  # groups and configuration are pages

    @property
    def title(self) -> str:
        """Name and method, and whether steps of ``layers`` were passed over: "run (LARS)"."""
        return f"{self.name} ({self.method}){self.sampling}"

    @property
    def sampling(self) -> str:
        """What a title says of steps that were passed over; empty where none were."""
        return f"; one of every {self.stride} recorded steps was read" if self.stride > 1 else ""

    @property
    def settings(self) -> dict[str, object]:
        """Settings that may change the run's result, by dotted name.

        Those with a field here are left out, except for data, model and epochs. So is what says only where the run
        computed and what it recorded, and what is None: runs from before the setting existed are not other runs.
        """
        if isinstance(self.config.get("optimizer"), dict):
            told = _flat({name: value for name, value in self.config.items() if name not in _ASIDE})
        else:
            # A loop recorded by `tvlars_probe.record` may have any configuration, or none.
            told = _flat({"group": [{name: group.get(name) for name in _OF_GROUPS} for group in self.groups]})
        kept = {name: value for name, value in told.items() if name not in _OWN_FIELDS and value is not None}
        return kept | {"data": self.data, "model": self.model, "epochs": self.epochs}

    @property
    def branch(self) -> Mapping[str, Any] | None:
        """Where the run goes on from, if it is a branch of another one: the part ``branch`` of its configuration."""
        told = self.config.get("branch")
        return told if isinstance(told, dict) else None

    @property
    def bad_loss_step(self) -> int | None:
        """The first step whose loss was not finite, as the manifest tells it; None where it tells of none.

        If a tensor went first, it is that tensor's step, provided that the run diverged.
        """
        if self.finding is None or not (is_of_loss(self.finding) or self.status == "diverged"):
            return None
        step = self.finding.get("step")
        return None if step is None else int(step)

    def group_of(self, parameters: Sequence[str]) -> list[Mapping[str, Any]]:
        """The manifest's entry of each parameter's group; an empty one where the manifest doesn't tell the group."""
        held = self.parameters.dropna(subset=["optimizer", "group"])
        keys = list(zip(held["optimizer"].astype(int), held["group"].astype(int), strict=True))
        entries = self._entries(sorted({*keys}))
        of = {name: entries.get(key, {}) for name, key in zip(held["name"], keys, strict=True)}
        return [of.get(p, {}) for p in parameters]

    def _entries(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Mapping[str, Any]]:
        """The manifest's entries by indices of optimizer and group, as the table of parameters counts both from 0.

        Args:
            keys: the groups in which that table has a parameter, in order.
        """
        if all("group" in entry for entry in self.groups):
            return {(entry.get("optimizer_index", 0), entry["group"]): entry for entry in self.groups}
        # Older manifests list the groups of all optimizers in a row. Groups without parameters are in the list, too,
        # but not in the table.
        filled = [entry for entry in self.groups if entry.get("parameters") != 0]
        if len(filled) == len(keys):
            return dict(zip(keys, filled, strict=True))
        # A group may hold only parameters that a later optimizer holds as well, and then isn't in the table either.
        sizes = {optimizer: 1 + max(g for o, g in keys if o == optimizer) for optimizer, _ in keys}
        places = {(o, g): g + sum(size for other, size in sizes.items() if other < o) for o, g in keys}
        return {key: self.groups[place] for key, place in places.items() if 0 <= place < len(self.groups)}

    @property
    def main_group(self) -> Mapping[str, Any]:
        """The manifest's entry of the first group that holds a parameter; an empty one where none is told.

        ``peak_lr``, ``lr``, ``optimizer`` and ``lmbda`` are those of this group, and so is the column ``lr`` of the
        table ``steps``.
        """
        return first_filled(self.groups)

    def descriptions_of(self, parameters: Sequence[str]) -> list[GroupDescription]:
        """The description of each parameter's group; an unknown one where the manifest doesn't tell the group."""
        # By identity: entries are dictionaries, which can't be keys, and one is parsed once for all its tensors.
        known = {id(group): from_entry(group) for group in self.groups}
        nobody = GroupDescription.unknown("")
        return [known.get(id(group), nobody) for group in self.group_of(parameters)]

    def flag(self, column: str, parameters: Sequence[str]) -> list[bool | None]:
        """Each parameter's value in a yes-or-no column of the table of parameters; None where it isn't told."""
        told = {
            name: bool(value)
            for name, value in zip(self.parameters["name"], self.parameters[column], strict=True)
            if value is not None and not pd.isna(value)
        }
        return [told.get(p) for p in parameters]


def _flat(value: Any, prefix: str = "") -> dict[str, object]:
    """The leaves of nested dictionaries and lists, by dotted name."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    else:
        return {prefix: value}
    return {key: leaf for name, item in pairs for key, leaf in _flat(item, f"{prefix}.{name}".strip(".")).items()}


def _asked_rate(config: Mapping[str, Any], group: Mapping[str, Any], peak_lr: float | None) -> float | None:
    """The learning rate as it was asked for with ``--lr``.

    The group's own is the last resort: the manifest holds it as it was after the last step, changed by the schedule.
    """
    asked = config.get("optimizer")
    if isinstance(asked, dict) and isinstance(asked.get("lr"), int | float):
        return float(asked["lr"])
    rate = peak_lr if peak_lr is not None else group.get("lr")
    # NaN stands for a group that has none.
    return None if rate is None or math.isnan(rate) else rate
