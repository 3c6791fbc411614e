"""The configuration of a training run: checked when it is made, and stored whole in the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from dataclasses import dataclass, field
from typing import Any, Self

from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import UserError, unknown
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.configuration.branch import BranchConfig
from tvlars_probe.runners.configuration.noise import NoiseConfig
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.phases.modes import MODES
from tvlars_probe.traces.plain_types import mismatches, shown

PRECISIONS = ("float32", "bf16", "float64")
MOST_SEEDS = 2**32
"""A seed is shifted by 20 bits to make room for the rank, and must still fit the 64 bits of torch's."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a training run is asked to do.

    Attributes:
        data: data set.
        model: model.
        optimizer: optimizer. Where the schedule says which peak it is to reach, ``optimizer.lr`` is the rate that
            takes it there with this batch size.
        schedule: learning-rate schedule.
        place: devices and processes.
        recording: what is recorded.
        sharpness: how the Hessian is measured in training.
        noise: how the gradient's noise is measured in training.
        barlow: settings of Barlow Twins and its linear probe, for mode "bt".
        branch: where the run goes on from, if it is a branch of another one; ``epochs`` then counts its stretches.
        mode: "clf" (classification) or "bt" (Barlow Twins, then a linear probe).
        batch_size: samples of one update, over all ranks.
        micro_batch: most samples that a rank computes at once; gradients are accumulated. The update is that of the
            whole batch, but BatchNorm takes its statistics over the micro-batch.
        epochs: passes over the training data; in mode "bt" the passes of the linear probe.
        seed: seed of the weights, the order of samples, and everything else random.
        precision: "float32", "bf16" (autocast) or "float64".
        sync_bn: whether BatchNorm takes its statistics over the samples of all ranks; in mode "bt" it always does.

    Raises:
        UserError: a setting is outside its range, or two settings don't go together.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    place: PlaceConfig = field(default_factory=PlaceConfig)
    recording: RecordConfig = field(default_factory=RecordConfig)
    sharpness: SharpnessConfig = field(default_factory=SharpnessConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    barlow: BarlowTwinsConfig = field(default_factory=BarlowTwinsConfig)
    branch: BranchConfig | None = None
    mode: str = "clf"
    batch_size: int = 512
    micro_batch: int | None = None
    epochs: int = 20
    seed: int = 0
    precision: str = "float32"
    sync_bn: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("--mode", self.mode, MODES)
        for name in ("batch_size", "micro_batch", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value} is too few (allowed: 1 or more)")
        if not 0 <= self.seed < MOST_SEEDS:
            raise UserError(f"--seed {self.seed} is no seed (allowed: 0 to {MOST_SEEDS - 1})")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if MODES[self.mode].joins_samples and self.micro_batch is not None:
            raise UserError(
                f"--micro-batch can't be used with --mode {self.mode}: its loss joins all samples of a batch (spread "
                "them over more ranks, or use a smaller --batch-size)"
            )
        if self.recording.noise and self.joins_ranks:
            what = "--sync-bn" if self.sync_bn else f"--mode {self.mode}"
            raise UserError(
                f"--noise can't be used with {what}, which joins the samples of all ranks: no piece of a batch has a "
                "gradient of its own (measure a fixed sample by --noise-every)"
            )
        asked = self.sharpness
        if asked.every and "batch" in asked.measures and asked.samples < self.batch_size:
            raise UserError(
                f"--sharpness-measures batch needs mini-batches of --batch-size {self.batch_size} in the sample: use "
                f"--sharpness-samples {4 * self.batch_size} or so (it is {asked.samples})"
            )
        if self.sharpness.every and {*self.sharpness.operators} == {"effective"} and not self.optimizer.has_rates:
            raise UserError(
                f"--sharpness-operators effective can't be measured with --opt {self.optimizer.name}, whose update "
                "isn't a rate times the gradient (use hessian or relative)"
            )
        if self.noise.every and self.noise.piece is None and MODES[self.mode].joins_samples:
            raise UserError(
                f"--noise-every needs --noise-piece with --mode {self.mode}: its loss joins all samples of a batch, so "
                "that no single sample has a gradient (say how many samples a piece has: --noise-piece 32)"
            )
        self._reach_peak()
        warmup, option = self.schedule.warmup_epochs, MODES[self.mode].epochs_option
        if warmup is not None and warmup >= self.scheduled_epochs:
            raise UserError(
                f"--warmup-epochs {warmup:g} leaves no epoch after the warm-up (use fewer than {option} "
                f"{self.scheduled_epochs})"
            )

    def _reach_peak(self) -> None:
        """Set the rate before the schedule, where the schedule's peak is given instead.

        Raises:
            UserError: both are given, and differ.
        """
        peak, factor = self.schedule.peak_lr, self.schedule.peak_factor(self.batch_size)
        if peak is None:
            return
        if self.optimizer.lr is None:
            object.__setattr__(self, "optimizer", dataclasses.replace(self.optimizer, lr=peak / factor))
        elif self.optimizer.lr != peak / factor:  # a stored configuration has both
            raise UserError(
                f"--lr {self.optimizer.lr:g} and --peak-lr {peak:g} can't both be: with --schedule "
                f"{self.schedule.name} and --batch-size {self.batch_size} that peak is "
                f"--lr {peak / factor:g}; give one of them"
            )

    @property
    def scheduled_epochs(self) -> int:
        """Epochs of the first phase, which the run's optimizer and schedule are for."""
        epochs: int = operator.attrgetter(MODES[self.mode].epochs)(self)
        return epochs if self.branch is None else self.branch.epochs

    @property
    def joins_ranks(self) -> bool:
        """Whether layers sum over the ranks, so that every rank must make the same forward passes."""
        return self.sync_bn or MODES[self.mode].joins_samples

    def config_id(self, *, fingerprint: str, world_size: int) -> str:
        """Hash of the settings that change a run's numbers; ports, workers, recording and paths aren't among them.

        Args:
            fingerprint: hash of the training data.
            world_size: number of ranks.
        """
        # The fingerprint is of pixels and labels, in which folder, limit and image size show. The warm-up is the one
        # that is carried out, so that the default and the same length spelt out have one hash.
        numbers: dict[str, Any] = {
            "data": [self.data.name, fingerprint, self.data.val],
            "model": self.model.as_dict(),
            "optimizer": [self.optimizer.name, self.optimizer.settings()],
            "schedule": [self.schedule.name, self.schedule.warmup_for(self.scheduled_epochs)],
            "training": [self.batch_size, self.micro_batch, self.epochs, self.seed, self.precision, world_size],
        }
        # A setting that a later version added stands in the hash only where it is used: so old runs keep their hash.
        if (own := MODES[self.mode].settings) is not None:
            numbers[own] = dataclasses.asdict(getattr(self, own))
        if self.sync_bn and not MODES[self.mode].joins_samples:
            numbers["sync_bn"] = True
        if self.data.augments:
            numbers["augmentation"] = "standard"
        if self.branch is not None:
            numbers["branch"] = self.branch.numbers()
        return hashlib.blake2b(json.dumps(numbers, sort_keys=True).encode(), digest_size=8).hexdigest()

    def without_download(self) -> TrainConfig:
        """The same configuration with downloads off: what a run directory says must not start a connection."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, download=False))

    def default_name(self, config_id: str) -> str:
        """The name of a run directory: data, model, optimizer, batch, rate, schedule, seed, start of the config_id."""
        optimizer = f"{self.optimizer.name}-bs{self.batch_size}-lr{self.optimizer.peak:g}"
        data = f"{MODES[self.mode].prefix}{self.data.name}"
        return f"{data}-{self.model.name}-{optimizer}-{self.schedule.name}-seed{self.seed}-{config_id[:6]}"

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values, as they stand in the manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """The configuration that a manifest holds; fields of later versions are passed over.

        Raises:
            UserError: it is not the configuration of a training run.
        """
        parts = {
            "data": DataConfig,
            "model": ModelConfig,
            "optimizer": OptimizerConfig,
            "schedule": ScheduleConfig,
            "place": PlaceConfig,
            "recording": RecordConfig,
            "sharpness": SharpnessConfig,
            "noise": NoiseConfig,
            "barlow": BarlowTwinsConfig,
            "branch": BranchConfig,
        }
        # Every version has written the others.
        if not parts.keys() - {"sharpness", "noise", "barlow", "branch"} <= stored.keys():
            raise UserError("the run was not made by tvlars-probe train: its manifest has no such configuration")
        stored = {name: value for name, value in stored.items() if name != "branch" or value is not None}
        there = {name: kind for name, kind in parts.items() if name in stored}
        wrong = [f"{name} is {shown(stored[name])}" for name in there if not isinstance(stored[name], dict)]
        wrong = wrong or [text for name, kind in there.items() for text in mismatches(kind, stored[name])]
        wrong += mismatches(cls, {name: value for name, value in stored.items() if name not in parts})
        if wrong:
            raise UserError(f"the configuration in the manifest is damaged: its {', its '.join(wrong)}")
        return cls(**{**_fields(cls, stored), **{name: _known(kind, stored[name]) for name, kind in there.items()}})


def _fields(kind: type[Any], stored: dict[str, Any]) -> dict[str, Any]:
    """The stored values that are fields of ``kind``; its tuples have become lists in JSON."""
    known = {f.name for f in dataclasses.fields(kind)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name in known}


def _known(kind: type[Any], stored: dict[str, Any]) -> Any:
    return kind(**_fields(kind, stored))
