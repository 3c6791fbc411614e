"""The probe of the gradient's noise that a run's configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.probes.noise import NoiseProbe
from tvlars_probe.runners.phases.probe_sample import ProbeSample

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.images import TensorImages
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
        budget=phase.config.sharpness.share,
        sample_id=sample.sample_id,
        shards=ranks,
        is_sum_over_samples=phase.is_sum_over_samples,
    )
