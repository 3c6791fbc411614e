"""The probes that a run's configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.optimizers.description import describe
from tvlars_probe.probes.noise import NoiseProbe
from tvlars_probe.probes.sharpness import SharpnessProbe
from tvlars_probe.runners.phases.probe_sample import ProbeSample

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.images import TensorImages
    from tvlars_probe.runners.phases.loop import Training
    from tvlars_probe.runners.phases.phase import Phase


def noise_probe(phase: Phase, model: nn.Module, images: TensorImages, ranks: Ranks, dtype: torch.dtype) -> NoiseProbe:
    """The probe of a phase, which measures before updates.

    Args:
        phase: the phase, whose configuration asks for it.
        model: the model that is trained, without wrappers.
        images: the training data.
        ranks: this process among the others.
        dtype: type of the images.
    """
    asked = phase.config.noise
    assert asked.every is not None
    sample = ProbeSample.draw(images, min(asked.samples, len(images)))
    return NoiseProbe(
        model,
        None,
        sample.batches(ranks, dtype, whole=False, make=phase.probe_batch),
        compute=phase.probe_loss,
        every=asked.every,
        bn_mode=phase.probe_bn_mode(asked.bn_mode),
        piece=asked.piece,
        sample_id=sample.sample_id,
        shards=ranks,
        is_sum_over_samples=phase.is_sum_over_samples,
    )


def unmeasured(phase: Phase, optimizer: Optimizer) -> str | None:
    """What is asked to be measured in a phase and can't be, in a sentence; None where all can."""
    asked = phase.config.sharpness
    lacking = [*dict.fromkeys(group.optimizer for group in describe(optimizer) if not group.has_rates)]
    if asked.every is None or "effective" not in asked.operators or not lacking:
        return None
    return (
        f"the effective sharpness isn't measured in the phase {phase.name}: an update by {', '.join(lacking)} "
        "isn't a rate times the gradient"
    )


def sharpness_probe(training: Training, every: str) -> SharpnessProbe:
    """The probe of the Hessian."""
    phase, asked, images = training.phase, training.phase.config.sharpness, training.data.train
    sample = ProbeSample.draw(images, min(asked.samples, len(images)))
    bn_mode = phase.probe_bn_mode(asked.bn_mode)
    # Batch statistics, and a loss that joins all samples, need the sample in one batch.
    whole = bn_mode == "train" or not phase.is_sum_over_samples
    dtype = training.replica.precision.dtype
    return SharpnessProbe(
        training.model,
        None,
        sample.batches(training.ranks, dtype, whole=whole, make=phase.probe_batch),
        compute=phase.probed,
        every=every,
        operators=tuple(o for o in asked.operators if o != "effective" or not unmeasured(phase, training.optimizer)),
        measures=asked.measures,
        batch_size=min(training.plan.batch_size, len(images)) if "batch" in asked.measures else None,
        bn_mode=bn_mode,
        tol=asked.tol,
        sample_id=sample.sample_id,
        is_sum_over_samples=phase.is_sum_over_samples,
    )


def probes_of(training: Training) -> list[SharpnessProbe | NoiseProbe]:
    """The probes that the configuration asks for, which measure before updates."""
    config = training.phase.config
    probes: list[SharpnessProbe | NoiseProbe] = []
    if config.sharpness.every is not None:
        probes.append(sharpness_probe(training, config.sharpness.every))
    if config.noise.every is not None:
        dtype = training.replica.precision.dtype
        probes.append(noise_probe(training.phase, training.model, training.data.train, training.ranks, dtype))
    return probes
