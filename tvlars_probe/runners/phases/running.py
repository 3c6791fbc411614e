"""A run on one of its ranks: the phases, one after the other, recorded into one trace."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import DataError
from tvlars_probe.probes.record import exports_named, record
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.launching.stop_signals import StopSignals
from tvlars_probe.runners.phases.branching import begin_branch, checkpoint_of
from tvlars_probe.runners.phases.loop import Training
from tvlars_probe.runners.phases.phase import phases_of
from tvlars_probe.runners.phases.probes import probes_of, unmeasured
from tvlars_probe.runners.progress import Silent
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.images import ImageData
    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.runners.configuration.training import TrainConfig
    from tvlars_probe.runners.planning import Job


def run_phases(ranks: Ranks, job: Job) -> int | None:
    """Train the phases of the run that ``job`` describes. Every rank calls it.

    Returns:
        the number of the signal that ended the run early; None where there was none, or a finding ended it.

    Raises:
        RunDirectoryError: the checkpoint doesn't fit, or the run directory can't be written.
        DataError: the ranks found different data.
    """
    data = job.config.data.load(job.config.place.workers)
    _check_same_data(ranks, data)
    state = checkpoints.load(job.checkpoint, ranks.device) if job.checkpoint else None
    trainings = build_trainings(ranks, job.config, data)
    first = next((t for t in trainings if state and t.phase.name == state["phase"]), trainings[0])
    # Before the recorder is entered, which touches the run: a checkpoint that doesn't fit leaves it as it is.
    if state:
        assert job.checkpoint is not None
        first.load_state_dict(state, job.checkpoint)
    elif job.config.branch is not None:
        begin_branch(first, job.config.branch, checkpoint_of(job.path, job.config.branch))
    teller = Teller()
    recorder = _recorder(job, state, first, trainings, teller)
    # Signals outermost: one that comes while the recorder writes its last rows doesn't cut it short.
    with StopSignals(recorder) as stop, recorder:
        _note_other_ranks(recorder, state, ranks)
        before: Training | None = None
        # Continued from a phase's end, that phase has no epoch left and only hands over to the next one.
        for training in trainings[trainings.index(first) :]:
            if before is not None:
                training.follow(before)
                name, model, optimizer = training.phase.name, training.model, training.optimizer
                recorder.begin_phase(name, model, optimizer, probes=probes_of(training))
            _note_unmeasured(recorder, training)
            label = training.phase.name if len(trainings) > 1 else None
            training.run(recorder, teller.of_phase(training, label=label, job=job))
            if recorder.diverged or recorder.interrupted:
                break
            before = training
    return stop.number if recorder.interrupted and not recorder.ended_by_finding else None


_MOST_TOLD = 5
"""Findings of one rule that are told while a run trains; all of them are in its trace."""


class Teller:
    """Tells of findings where the progress of the phase is shown: in one line each, on the rank that speaks.

    A flush may come after a phase's end: what it finds is told as that phase would have.
    """

    def __init__(self) -> None:
        self._progress = Silent()
        self._told: collections.Counter[str] = collections.Counter()

    def of_phase(self, training: Training, *, label: str | None, job: Job) -> Silent:
        """What shows how far a phase is, and tells of findings from now on."""
        self._progress = training.reporter(label=label, quiet=job.quiet, heading=job.heading)
        return self._progress

    def finding(self, finding: Finding) -> None:
        """Tell of a finding."""
        self._told[finding.rule] += 1
        if self._told[finding.rule] <= _MOST_TOLD:
            is_last = self._told[finding.rule] == _MOST_TOLD
            rest = " (further findings of this rule are recorded, not told)" if is_last else ""
            self._progress.finding(f"{finding}{rest}")


def _check_same_data(ranks: Ranks, data: ImageData) -> None:
    """Refuse data that differs between ranks, as it may between nodes: they would make different numbers of steps."""
    if ranks.world_size > 1:
        mine = data.train.fingerprint()
        if ranks.any(mine != ranks.from_first(mine)):
            raise DataError(f"{data.name} isn't the same on all ranks: give every node the same files")


def build_trainings(ranks: Ranks, config: TrainConfig, data: ImageData) -> list[Training]:
    """The training of each phase, in order. All share one copy of the training images on the device."""
    images, trainings, first_step = data.train.to(ranks.device), [], 0
    for phase in phases_of(config):
        trainings.append(Training.build(phase, ranks, data, images, first_step=first_step))
        first_step += trainings[-1].schedule.total_steps
    return trainings


def _recorder(
    job: Job, state: Mapping[str, Any] | None, training: Training, trainings: Sequence[Training], teller: Teller
) -> Recorder:
    """The run's recorder, which begins with the phase of ``training``, or goes on in it."""
    recording = job.config.recording
    recorder = record(
        training.model,
        training.optimizer,
        job.path,
        config=job.config.as_dict(),
        total_steps=sum(each.schedule.total_steps for each in trainings),
        detail=recording.detail,  # type: ignore[arg-type]
        every=recording.every,
        spectral_every=recording.spectral_every,
        noise=recording.noise,
        probes=probes_of(training),
        probe_budget=job.config.sharpness.share,
        on_probe_error=recording.on_probe_error,  # type: ignore[arg-type]
        findings=recording.findings,
        on_finding=teller.finding,
        stop_on=recording.stop_on,
        manifest=_manifest(job, trainings),
        resume=state["recorder"] if state else job.blank_state,
        export=exports_named(recording.export, recording.export_layers),
    )
    recorder.stop_by_flag()
    recorder.phase = training.phase.name
    return recorder


def _manifest(job: Job, trainings: Sequence[Training]) -> Manifest:
    """What is known of the run before it begins. Sizes and learning rates are those of the first phase."""
    config, first = job.config, trainings[0]
    world_size, micro_batches = first.ranks.world_size, first.plan.micro_batches
    # The largest share of a rank: ceil(batch size / ranks).
    share = -(-config.batch_size // world_size)
    return Manifest(
        run_id=job.run_id,
        config_id=job.config_id,
        command=list(job.command),
        seed=config.seed,
        data=first.data.describe(),
        model={"name": config.model.name, "parameters": sum(p.numel() for p in first.model.parameters())},
        batch_size=config.batch_size,
        micro_batches=micro_batches,
        world_size=world_size,
        bn_batch_size=config.batch_size if config.joins_ranks else -(-share // micro_batches),
        steps_per_epoch=first.plan.steps_per_epoch,
        peak_lr=first.peak_lr,
        phases=[training.describe() for training in trainings],
    )


def _note_unmeasured(recorder: Recorder, training: Training) -> None:
    """Note in the manifest what is asked to be measured in a phase and can't be."""
    text = unmeasured(training.phase, training.optimizer)
    if text is not None and recorder.journal is not None and text not in recorder.manifest.notes:
        recorder.manifest.notes.append(text)


def _note_other_ranks(recorder: Recorder, state: Mapping[str, Any] | None, ranks: Ranks) -> None:
    """Note in the manifest if a run is continued with another number of ranks or threads, which changes rounding."""
    if state is None or recorder.journal is None:
        return
    notes, step, before = recorder.manifest.notes, state["step"], len(state["rng"])
    if before != ranks.world_size:
        notes.append(
            f"continued at step {step} on {ranks.world_size} rank(s) instead of {before}: sums are in another order "
            f"from there on"
        )
    # The last segment is the one that has just begun.
    segments = recorder.manifest.segments[-2:]
    threads = [segment.get("threads") for segment in segments]
    if before == ranks.world_size and len({*threads}) > 1:
        notes.append(f"continued at step {step} with {threads[1]} thread(s) a rank instead of {threads[0]}")
