"""The configuration of a training run: checked when it is made, and stored whole in the manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
from dataclasses import dataclass, field
from typing import Any, Self

from tvlars_probe.curvature.measures import IN_TRAINING
from tvlars_probe.curvature.results import BN_MODES, OPERATORS
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import UserError, unknown
from tvlars_probe.findings.ids import known_rules
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.optimizers.registry import OptimizerConfig
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.branch_config import BranchConfig
from tvlars_probe.runners.noise_config import NoiseConfig
from tvlars_probe.runners.phases.barlow_config import BarlowTwinsConfig
from tvlars_probe.runners.phases.modes import MODES
from tvlars_probe.traces.plain_types import mismatches, shown

PRECISIONS = ("float32", "bf16", "float64")
# A seed is shifted by 20 bits to make room for the rank, and must still fit the 64 bits of torch's.
MOST_SEEDS, MOST_THREADS = 2**32, 1024
DETAILS = ("full", "norms", "none")
ON_PROBE_ERROR = ("warn", "raise")


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where a run computes. The numbers of ranks and threads decide the order of sums; port and workers change nothing.

    Attributes:
        devices: "auto" (the first CUDA device, else the CPU), "cpu", or numbers of CUDA devices, one rank each.
        nproc: number of ranks on the CPU; with CUDA devices it must be their number, if it is given.
        threads: torch threads per rank; by default torch's own number for one rank, an equal share of the cores for
            several.
        port: port on this machine where the ranks meet; 0 takes a free one.
        workers: threads that decode image files.
    """

    devices: tuple[str, ...] = ("auto",)
    nproc: int | None = None
    threads: int | None = None
    port: int = 0
    workers: int = 4

    def __post_init__(self) -> None:
        for name, least in (("nproc", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value} is too few (allowed: {least} or more)")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise UserError(f"--threads {self.threads} is too many (allowed: 1 to {MOST_THREADS})")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port {self.port} is no port (allowed: 0 to 65535)")
        if self.workers < 0:
            raise UserError(f"--workers {self.workers} is too few (allowed: 0 or more)")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is recorded of a run, and when it is checkpointed. None of it changes the run's numbers.

    Attributes:
        detail: "full", "norms" (without update_norm) or "none" (steps and epochs only).
        every: steps between recordings of the layers; 1 records them in every step.
        spectral_every: steps between measurements of spectral norms, a multiple of ``every``; None for none.
        noise: whether the gradient's noise is estimated in recorded steps, from micro-batches and ranks.
        checkpoint_every: epochs between checkpoints; 0 writes only the last one.
        checkpoint_steps: updates between further checkpoints, also within epochs.
        checkpoint_minutes: minutes between further checkpoints.
        keep_checkpoints: how many of the latest are kept, beside the best one and the one at the end of the phase
            before; 0 keeps all.
        on_probe_error: "warn" goes on without the probes when one raises, "raise" ends the run.
        train_eval_samples: training samples evaluated at each epoch's end; 0 leaves this evaluation out.
        findings: ids of the rules that look for what is wrong, or "default", "all" or "none".
        stop_on: ids of rules whose findings end the run.
        export: names of the trackers that are sent the run while it trains.
        export_layers: patterns of the tensors of which they get all figures.
    """

    detail: str = "full"
    every: int = 1
    spectral_every: int | None = None
    noise: bool = False
    checkpoint_every: int = 1
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 1
    on_probe_error: str = "warn"
    train_eval_samples: int = 10_000
    findings: tuple[str, ...] = ("default",)
    stop_on: tuple[str, ...] = ()
    export: tuple[str, ...] = ()
    export_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.detail not in DETAILS:
            raise unknown("--record", self.detail, DETAILS)
        if self.every < 1:
            raise UserError(f"--record-every {self.every} is too few (allowed: 1 or more)")
        if self.spectral_every is not None:
            if self.spectral_every < 1 or self.spectral_every % self.every:
                raise UserError(
                    f"--spectral-every {self.spectral_every} isn't possible (allowed: 1 or more, a multiple of "
                    f"--record-every {self.every})"
                )
            if self.detail == "none":
                raise UserError("--spectral-every needs the layers, which --record none leaves out")
        if self.noise and self.detail == "none":
            raise UserError("--noise needs the norms of the gradients, which --record none leaves out")
        for name in ("checkpoint_every", "train_eval_samples", "keep_checkpoints"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is too few (allowed: 0 or more)")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise UserError(f"--checkpoint-steps {self.checkpoint_steps} is too few (allowed: 1 or more)")
        if self.checkpoint_minutes is not None and not 0 < self.checkpoint_minutes < math.inf:
            raise UserError(f"--checkpoint-minutes {self.checkpoint_minutes:g} is no time (allowed: above 0, finite)")
        if self.export_layers and not self.export:
            raise UserError("--export-layers says what trackers get: name them by --export")
        if self.on_probe_error not in ON_PROBE_ERROR:
            raise unknown("--on-probe-error", self.on_probe_error, ON_PROBE_ERROR)
        for name in ("findings", "stop_on"):
            known_rules(getattr(self, name), f"--{name.replace('_', '-')}")


@dataclass(frozen=True, kw_only=True)
class SharpnessConfig:
    """How the Hessian is measured in training. None of it changes the run's numbers.

    Attributes:
        every: steps between measurements, "log" (each of the first ten steps, then ten in each decade), or None.
        operators: operators to measure, among "hessian", "effective", "relative" and "ggn".
        measures: among "eigenvalue", "batch", "directional" and "critical"; see `tvlars_probe.SharpnessProbe`.
        samples: training samples of the fixed probe batch; all of them where there are fewer.
        bn_mode: BatchNorm while measuring: "train", "eval" or "frozen-batch"; see `tvlars_probe.curvature.batch_norm`.
        tol: relative error of the eigenvalue.
        budget: highest share of the run's time that all probes may take together, such as "10%"; None sets no limit.
    """

    every: str | None = None
    operators: tuple[str, ...] = ("hessian", "effective", "relative")
    measures: tuple[str, ...] = ("eigenvalue",)
    samples: int = 256
    bn_mode: str = "train"
    tol: float = 1e-3
    budget: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every != "log" and not (self.every.isdecimal() and int(self.every) > 0):
            raise UserError(f"--sharpness-every {self.every}: give a number of steps, 1 or more, or 'log'")
        for name in self.operators:
            if name not in OPERATORS:
                raise unknown("--sharpness-operators", name, OPERATORS)
        if not self.measures:
            raise UserError(f"--sharpness-measures names none (allowed: {', '.join(IN_TRAINING)})")
        for name in self.measures:
            if name not in IN_TRAINING:
                raise unknown("--sharpness-measures", name, IN_TRAINING)
        if self.samples < 1:
            raise UserError(f"--sharpness-samples {self.samples} is too few (allowed: 1 or more)")
        if self.bn_mode not in BN_MODES:
            raise unknown("--sharpness-bn", self.bn_mode, BN_MODES)
        if not self.tol > 0:
            raise UserError(f"--sharpness-tol {self.tol:g} is too small (allowed: above 0)")
        self.share  # noqa: B018 (refuses a budget that is none)

    @property
    def share(self) -> float | None:
        """The budget as a number above 0 and at most 1; None without a budget.

        Raises:
            UserError: the budget is no such share.
        """
        if self.budget is None:
            return None
        text = self.budget.strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise UserError(f"--probe-budget {self.budget}: give a share of the run's time, such as 10% (up to 100%)")
        return share


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a training run is asked to do.

    Attributes:
        data: data set.
        model: model.
        optimizer: optimizer.
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
        warmup, option = self.schedule.warmup_epochs, MODES[self.mode].epochs_option
        if warmup is not None and warmup >= self.scheduled_epochs:
            raise UserError(
                f"--warmup-epochs {warmup:g} leaves no epoch after the warm-up (use fewer than {option} "
                f"{self.scheduled_epochs})"
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
