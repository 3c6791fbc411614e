"""Batch sharpness: the curvature along mini-batches' own gradients, E_B[g_Bᵀ·H_B·g_B / ‖g_B‖²].

g_B and H_B are gradient and Hessian of one mini-batch's mean loss, B a mini-batch as training draws it. SGD without
momentum with the rate η settles where it is 2/η, while the top eigenvalue of the whole loss lies below
(Andreyev and Beneventano, 2024, arXiv:2412.20553). It is estimated over disjoint mini-batches of a sample, each with
one gradient and one product with its Hessian.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

import torch
from scipy.special import stdtrit

from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.agreeing import on_all_ranks
from tvlars_probe.curvature.batches import disjoint
from tvlars_probe.curvature.krylov import products
from tvlars_probe.curvature.objective import Objective
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.curvature.preserving import preserved
from tvlars_probe.curvature.results import BatchSharpness
from tvlars_probe.errors import NonFiniteLossError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from tvlars_probe.curvature.batches import Batch


def batch_sharpness(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    *,
    batch_size: int,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda *_: None,
) -> BatchSharpness:
    """Cut the sample at random into mini-batches, and average over them.

    Over several ranks every rank measures some of the mini-batches, which are the same as on one rank. BatchNorm in the
    modes "train" and "frozen-batch" takes each mini-batch's own statistics.

    Args:
        objective: f, whose sample is cut; it isn't held.
        parameters: by name; those that require a gradient take part.
        batch_size: samples of a mini-batch. What the last one lacks to this size is left out.
        seed: of the order in which the samples are taken.
        report: called with the number of mini-batches measured and the number to measure, of this rank.

    Raises:
        UserError: the sample holds no mini-batch, or can't be cut; a loss that joins the samples of several ranks.
        NonFiniteLossError: a gradient or product isn't finite, or a gradient is zero.
    """
    began, shards = time.perf_counter(), objective.shards
    if shards.world_size > 1 and not objective.is_sum_over_samples:
        raise UserError("batch sharpness of a loss that joins the samples of all ranks is measured on one rank only")
    if batch_size > objective.samples:
        raise UserError(
            f"batch sharpness needs a mini-batch of {batch_size:,} samples, and the sample has {objective.samples:,}: "
            "take a larger sample"
        )
    everything = [
        tuple(t.to(objective.device) for t in batch)
        for rank in range(shards.world_size)
        for batch in shards.from_rank(rank, [tuple(t.cpu() for t in batch) for batch in objective.sample])
    ]
    cut = on_all_ranks(shards, lambda: disjoint(everything, batch_size, seed))
    mine = [*range(shards.rank, len(cut), shards.world_size)]
    found, functions = torch.zeros(len(cut), dtype=torch.float64), dict[str, None]()

    def measure() -> None:
        for made, place in enumerate(mine):
            report(made, len(mine))
            found[place], names = _quotient(objective, parameters, cut[place])
            functions.update(dict.fromkeys(names))

    with _buffers_of_first(objective):
        on_all_ranks(shards, measure)
    values = shards.sum(found.to(shards.device)).cpu()
    if not values.isfinite().all():
        raise NonFiniteLossError("the gradient of a mini-batch is zero, or it or its product isn't finite")
    count, mean = len(values), values.mean().item()
    error = values.std().item() / math.sqrt(count) if count > 1 else None
    half = None if error is None else float(stdtrit(count - 1, 0.975)) * error
    return BatchSharpness(
        value=mean,
        standard_error=error,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        values=tuple(values.tolist()),
        batch_size=batch_size,
        custom_functions=tuple(functions),
        matvecs=count,
        seconds=time.perf_counter() - began,
    )


@contextlib.contextmanager
def _buffers_of_first(objective: Objective) -> Iterator[None]:
    """Let every rank's model have the first rank's buffers: running statistics differ from rank to rank."""
    if objective.shards.world_size == 1:
        yield
        return
    with preserved(objective.model):
        objective.shards.broadcast(objective.model.buffers())
        yield


def _quotient(objective: Objective, parameters: Mapping[str, Tensor], batch: Batch) -> tuple[float, tuple[str, ...]]:
    """gᵀ·H·g/‖g‖² of one mini-batch, NaN where the gradient is zero; and the custom functions in its graph."""
    one = Objective(
        objective.model,
        objective.compute,
        batch,
        bn_mode=objective.bn_mode,
        shards=Ranks(objective.device),
        is_sum_over_samples=objective.is_sum_over_samples,
    )
    with one.held():
        # The graph of the one batch is freed with the operator.
        hessian = HessianOperator(one, parameters)
        g = hessian.gradient()
        product = hessian.matvec(g)
        both = products(torch.stack([product, g]), g).cpu()
    return (both[0] / both[1]).item(), hessian.custom_functions
