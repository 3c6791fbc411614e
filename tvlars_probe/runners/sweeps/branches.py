"""The branches of a run: from one of its checkpoints on, with several batch sizes and orders of the data."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.optimizers.batch_change import for_batch
from tvlars_probe.runners.checkpoints import contents
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.configuration.branch import BranchConfig
from tvlars_probe.runners.configuration.noise import NoiseConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.planning import check_fit
from tvlars_probe.runners.posthoc.restored_state import choose_checkpoint, load_config
from tvlars_probe.runners.sweeps.trials import Trial
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.run_directory import refuse_inside_run

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.data.images import ImageData

MOST_EVALUATIONS = 10
"""Most evaluations of a branch, at equal distances in samples."""


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """What branches of a run are asked for.

    Attributes:
        run: the parent's run directory.
        checkpoint: the checkpoint to branch from: a step, "last" or "best".
        batch_sizes: samples of one update, a branch each.
        samples: samples that each branch trains on.
        lr_rule: one of `tvlars_probe.optimizers.batch_change.LR_RULES`.
        seeds: number of orders of the data, a branch each with every batch size.
        out: folder of the branches; None is the run's own.
        order: as in `BranchConfig`.

    Raises:
        UserError: a number is too small, or a batch size stands twice.
    """

    run: Path
    checkpoint: str
    batch_sizes: tuple[int, ...]
    samples: int
    lr_rule: str = "sqrt"
    seeds: int = 1
    out: Path | None = None
    order: str = "own"

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise UserError("--batch-sizes names none: give one or more, such as 64,128,256")
        for size in self.batch_sizes:
            if size < 1:
                raise UserError(f"--batch-sizes {size} is too few (allowed: 1 or more)")
            if self.batch_sizes.count(size) > 1:
                raise UserError(f"--batch-sizes names {size} twice: name each once")
            if size > self.samples:
                raise UserError(
                    f"--samples {self.samples} is less than one batch of --batch-sizes {size}: give {size} or more"
                )
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds} is too few (allowed: 1 or more)")

    @property
    def command(self) -> tuple[str, ...]:
        """The command line."""
        words = ["branch", str(self.run), "--checkpoint", self.checkpoint]
        words += ["--batch-sizes", ",".join(map(str, self.batch_sizes)), "--samples", str(self.samples)]
        words += ["--lr-rule", self.lr_rule, "--seeds", str(self.seeds)]
        return (*words, *(() if self.out is None else ("--out", str(self.out))))

    @property
    def folder(self) -> Path:
        """The folder of the branches."""
        if self.out is not None:
            return self.out
        # Where the path has no name, as "." has none, its parent is not the folder that the run stands in.
        return self.run.parent if self.run.name not in ("", "..") else self.run.resolve().parent

    def path(self, step: int, batch_size: int, seed: int) -> Path:
        """The run directory of a branch."""
        name = f"{self.run.resolve().name}-branch-{step}-b{batch_size}{f'-s{seed}' if seed else ''}"
        return self.folder / name


def evaluations(samples: int, batch_size: int) -> int:
    """How often a branch is evaluated.

    The most times, up to `MOST_EVALUATIONS`, that cut the samples into stretches of whole batches, or once.
    """
    counts = range(MOST_EVALUATIONS, 0, -1)
    return next((count for count in counts if samples % (count * batch_size) == 0), 1)


def branch_trials(plan: BranchPlan) -> list[Trial]:
    """The branches that a plan asks for, the smallest batch first. Nothing is made yet.

    Raises:
        UserError: the run can't be branched as asked.
        RunDirectoryError: there is no run, its checkpoint is damaged, or a branch with other settings is there.
    """
    manifest = Manifest.load(plan.run)
    config = _parent_config(plan.run)
    path = choose_checkpoint(plan.run, plan.checkpoint)
    state = checkpoints.load(path)
    checkpoints.refuse(path, contents.misfits(state, manifest))
    branch = BranchConfig(
        parent="",
        run_id=manifest.run_id,
        step=state["step"],
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps_per_epoch=_steps_per_epoch(plan.run, manifest),
        samples=plan.samples,
        lr_rule=plan.lr_rule,
        order=plan.order,
        passes=state["epochs"],
        batches=state.get("batches", 0),
    )
    _check_schedule(config, branch)
    data = _same_data(plan.run, manifest, config)
    trials = []
    for size in sorted(plan.batch_sizes):
        configs = [_branch_config(config, branch, size, seed, plan) for seed in range(plan.seeds)]
        _check_batch(configs[0], data)
        for seed, each in enumerate(configs):
            home = plan.path(branch.step, size, seed)
            point = {"batch size": str(size), "seed": str(seed)}
            trials.append(Trial(config=each, path=home, point=point, command=plan.command))
    for trial in trials:
        _refuse_others(trial)
    return trials


def _parent_config(run: Path) -> TrainConfig:
    config = load_config(run, remedy="Branches go on by tvlars-probe's own training loop")
    if config.mode != "clf":
        raise UserError(
            f"{run} was trained with --mode {config.mode}, whose loss joins all samples of a batch, so that another "
            "batch size is another loss: branch a run of --mode clf"
        )
    if config.branch is not None:
        raise UserError(f"{run} is a branch itself: branch the run that it comes from")
    return config


def _steps_per_epoch(run: Path, manifest: Manifest) -> int:
    if manifest.steps_per_epoch is None:
        raise RunDirectoryError(f"{run / FILE_NAME} doesn't tell the steps of an epoch: the run can't be branched")
    return manifest.steps_per_epoch


def _check_schedule(config: TrainConfig, branch: BranchConfig) -> None:
    """Refuse a branch that would go on behind the end of a schedule that ends with the run."""
    left = (branch.epochs * branch.steps_per_epoch - branch.step) * branch.batch_size
    if config.schedule.name != "none" and branch.samples > left:
        remedy = f"give {left} or fewer" if left else "branch an earlier checkpoint"
        raise UserError(
            f"--samples {branch.samples} is more than the run's schedule, {config.schedule.name}, has left after step "
            f"{branch.step}: {remedy}"
        )


def _same_data(run: Path, manifest: Manifest, config: TrainConfig) -> ImageData:
    data = config.data.load(config.place.workers)
    began = (manifest.data or {}).get("fingerprint")
    if began is not None and began != data.train.fingerprint():
        raise UserError(f"{run} was trained on other data: {data.name} is not what it was when the run began")
    return data


def _check_batch(config: TrainConfig, data: ImageData) -> None:
    """Refuse a batch that the data, the ranks or the model don't allow."""
    size, samples = config.batch_size, len(data.train)
    ranks = config.place.nproc or len(config.place.devices)
    if size > samples:
        raise UserError(f"--batch-sizes {size} is larger than the training data: {data.name} has {samples} samples")
    if size < ranks:
        raise UserError(f"--batch-sizes {size} is smaller than the number of ranks, {ranks}")
    check_fit(config, data, ranks)


def _branch_config(config: TrainConfig, branch: BranchConfig, size: int, seed: int, plan: BranchPlan) -> TrainConfig:
    """The configuration of one branch: the parent's, but for the batch and what follows from it."""
    home = plan.path(branch.step, size, seed).resolve()
    ratio, kept = size / branch.batch_size, config.recording
    return dataclasses.replace(
        config,
        optimizer=for_batch(config.optimizer, ratio=ratio, rule=branch.lr_rule, updates=branch.step),
        schedule=dataclasses.replace(config.schedule, peak_lr=None),  # the rule decides the rate
        # Spectral norms, trackers, the Hessian and the noise were asked for of the parent. An evaluation on training
        # data is what branches are compared by.
        recording=RecordConfig(
            detail=kept.detail,
            every=kept.every,
            on_probe_error=kept.on_probe_error,
            train_eval_samples=kept.train_eval_samples or RecordConfig.train_eval_samples,
            findings=kept.findings,
            stop_on=kept.stop_on,
        ),
        sharpness=SharpnessConfig(),
        noise=NoiseConfig(),
        branch=dataclasses.replace(branch, parent=os.path.relpath(plan.run.resolve(), home)),
        batch_size=size,
        epochs=evaluations(branch.samples, size),
        seed=config.seed if branch.order == "parent" else seed,
    )


def _refuse_others(trial: Trial) -> None:
    """Refuse to take another run for a branch that was made before, and a place in another run's directory."""
    refuse_inside_run(trial.path)
    if not (trial.path / FILE_NAME).exists():
        return
    manifest = Manifest.load(trial.path)
    there = TrainConfig.from_dict(manifest.config).branch if manifest.is_of_train else None
    wanted = trial.config.branch
    assert wanted is not None
    if there is None or there.numbers() != wanted.numbers():
        other = "is no branch" if there is None else _difference(there, wanted)
        raise RunDirectoryError(f"{trial.path} {other}: give another --out, or move it away")


def _difference(there: BranchConfig, wanted: BranchConfig) -> str:
    if there.run_id != wanted.run_id:
        return f"is a branch of another run ({there.run_id})"
    names = [name for name, value in wanted.numbers().items() if there.numbers()[name] != value]
    return "is a branch with other settings: " + ", ".join(f"{name} {getattr(there, name)}" for name in names)
