"""`gradient_noise`, which measures signal and noise in the gradient of any model's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.objective import supervised
from tvlars_probe.noise.cutting import objective_of
from tvlars_probe.noise.measuring import noise_of
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from tvlars_probe.curvature.objective import Weights
    from tvlars_probe.noise.results import GradientNoise


def gradient_noise(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    bn_mode: str = "eval",
    piece: int | None = None,
    parameters: Callable[[str], bool] | None = None,
    shards: Ranks | None = None,
    weights: Weights | None = None,
    is_sum_over_samples: bool = True,
    memory_budget: int | None = None,
    eigenvectors: int | Tensor = 0,
    seed: int = 0,
    sample_id: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> GradientNoise:
    """Estimate |G|² and tr Σ: the signal and the noise in the gradient of a model's loss.

    G is the gradient of the mean loss over all data of which the samples are drawn, Σ the covariance of one sample's
    gradient. Both estimates are unbiased; each has a standard error, by the jackknife over samples
    (`tvlars_probe.noise.moments`). B_simple = tr Σ/|G|² (McCandlish et al. 2018, arXiv 1812.06162) is
    ``result.simple_batch``, with its interval.

    The model is left as it was, bit for bit; `tvlars_probe.curvature.preserving` lists what that includes.

    Args:
        model: any model, on any device, with or without wrappers by DDP or `torch.compile`.
        loss_fn: mean loss of ``model(inputs)`` and ``targets``.
        data: a pair (inputs, targets), or batches that are such pairs; under DDP this rank's part.
        bn_mode: "eval", "train" or "frozen-batch"; see `tvlars_probe.curvature.batch_norm`.
        piece: compare the gradients of pieces of so many samples, rather than of single ones. Where BatchNorm is in
            train mode, or the loss joins its samples, no single sample has a gradient, and each piece is a batch of its
            own. Samples that fill no piece are left out.
        parameters: tells by a parameter's name whether it takes part; by default all that require a gradient do.
        shards: ranks that each hold a part of the data; ``Ranks.of_process_group()`` under DDP.
        weights: what a batch counts, for losses that are means over something else than samples; see
            `tvlars_probe.sharpness`. The gradient of a sample is then that of its loss times its weight, over the mean
            weight, so that their mean is the gradient of f.
        is_sum_over_samples: False for a loss that joins the samples of a batch; it needs ``piece``.
        memory_budget: bytes that may be taken beyond what the process holds; by default half of what is free.
        eigenvectors: k, to find the share of the noise along the Hessian's top k eigenvectors; or these vectors.
        seed: of the search for eigenvectors.
        sample_id: names the sample in the rows.
        report: called with a line about what is being computed.

    Raises:
        UserError: something can't be measured as asked; the loss isn't a mean over samples, or not by ``weights``.
        NonFiniteLossError: the loss isn't finite.

    Example:
        >>> import torch
        >>> inputs, targets = torch.randn(200, 3), torch.randn(200, 1)
        >>> found = gradient_noise(torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, (inputs, targets))
        >>> found.frame().scope.tolist()
        ['all', '', 'weight', 'bias']
    """
    model, shards = unwrap(model), shards or Ranks()
    objective = objective_of(
        model,
        supervised(loss_fn),
        data,
        bn_mode=bn_mode,
        shards=shards,
        weights=weights,
        is_sum_over_samples=is_sum_over_samples,
    )
    return noise_of(
        objective,
        {name: p for name, p in model.named_parameters() if parameters is None or parameters(name)},
        shards=shards,
        piece=piece,
        memory_budget=memory_budget,
        eigenvectors=eigenvectors,
        seed=seed,
        sample_id=sample_id,
        report=report,
    )
