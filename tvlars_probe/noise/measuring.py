"""The gradient's noise in one state of a model, as rows that a trace keeps."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tvlars_probe.admission.numbers import whole
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.errors import UserError
from tvlars_probe.noise.cutting import Cut, joins_samples
from tvlars_probe.noise.gradients import ByLayers, OneByOne
from tvlars_probe.noise.moments import moments, pieces_needed, top_share
from tvlars_probe.noise.passes import Passes
from tvlars_probe.noise.results import GradientNoise, NoiseEstimate
from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.noise.gradients import Way
    from tvlars_probe.noise.passes import InnerProducts

    Report = Callable[[str], None]


def noise_of(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    *,
    shards: Ranks,
    piece: int | None = None,
    memory_budget: int | None = None,
    eigenvectors: int | Tensor = 0,
    seed: int = 0,
    sample_id: str | None = None,
    report: Report = lambda _: None,
) -> GradientNoise:
    """Estimate |G|² and tr Σ of an objective's samples: of the whole model, of each layer, of each tensor.

    Args:
        objective: f. Where pieces have statistics or a loss of their own, it holds this rank's part of the sample
            alone: see `tvlars_probe.noise.cutting`.
        parameters: the parameters of which f is a function, by name.
        shards: the ranks that hold the sample.
        piece: samples of a piece; None for single samples.
        memory_budget: bytes that may be taken beyond what the process holds; None for half of what is free.
        eigenvectors: how many of the Hessian's top eigenvectors to find, or these themselves, as rows over the
            parameters on which f depends, in their order.
        seed: of the start of Lanczos' method.
        sample_id: name of the sample, for the rows.
        report: called with a line about what is being computed.

    Raises:
        UserError: something can't be measured as asked.
        NonFiniteLossError: the loss isn't finite.
    """
    began = time.perf_counter()
    chosen = {name: p for name, p in parameters.items() if p.requires_grad}
    if not chosen:
        raise UserError("no parameter is chosen that requires a gradient")
    piece, memory_budget, seed = checked_settings(piece, memory_budget, seed)
    cut = Cut.of(objective, shards, piece)
    with objective.held():
        vectors = _directions(objective, chosen, eigenvectors, seed, report)
        passes = Passes(
            objective=objective,
            parameters=chosen,
            shards=cut.shards,
            stretches=cut.stretches,
            way=_way(objective, chosen, cut),
            budget=memory_budget,
            vectors=vectors,
            report=report,
        )
        found = passes.run()
    common = {
        "bn_mode": objective.bn_mode,
        "sample_id": sample_id,
        "seed": seed,
        "precision": str(next(iter(chosen.values())).dtype).removeprefix("torch."),
        "loss": found.loss,
        "pieces": found.squares.shape[1],
        "piece_size": float(piece or 1),
        "samples": found.squares.shape[1] * (piece or 1),
        "seconds": time.perf_counter() - began,
    }
    return GradientNoise(
        estimates=tuple(_estimates(found, piece or 1, len(vectors), common)),
        left_out=tuple(name for name in parameters if name not in found.names),
        notes=(*cut.notes, *found.notes),
    )


def checked_settings(piece: Any, memory_budget: Any, seed: Any) -> tuple[int | None, int | None, int]:
    """The settings as Python's whole numbers.

    Raises:
        UserError: one of them is none, or too small.
    """
    return (
        whole("piece", piece, "a number of samples", least=1, optional=True),
        whole("memory_budget", memory_budget, "a number of bytes", least=1, optional=True),
        whole("seed", seed, "a seed"),
    )


def checked_eigenvectors(asked: Any) -> int | Tensor:
    """How many eigenvectors are asked for, or these themselves.

    Raises:
        UserError: it is neither.
    """
    if isinstance(asked, Tensor):
        return asked
    what = "their number, or a tensor whose rows they are over all parameters on which the loss depends"
    return whole("eigenvectors", asked, what)


def _way(objective: Objective, parameters: Mapping[str, Tensor], cut: Cut) -> Way:
    """How gradients are taken, by losses scaled so that f is the plain mean of the pieces'."""
    weight = sum(objective.weight_of(stretch.take(0, len(stretch))) for stretch in cut.stretches)
    count = sum(len(stretch) // cut.own for stretch in cut.stretches)
    sums = torch.tensor([weight, count], dtype=accumulation_dtype(objective.device), device=objective.device)
    total, pieces = cut.shards.sum(sums).tolist()
    scale = pieces / total
    if cut.piece is None:
        return ByLayers(objective, parameters, scale)
    return OneByOne(objective, parameters, scale, cut.own, cut.joined)


def _directions(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    asked: int | Tensor,
    seed: int,
    report: Report,
) -> list[dict[str, Tensor]]:
    """The eigenvectors asked for or given, made orthonormal, by parameter."""
    asked = checked_eigenvectors(asked)
    if isinstance(asked, int) and asked == 0:
        return []
    if joins_samples(objective.bn_mode, objective.model, is_sum_over_samples=objective.is_sum_over_samples):
        raise UserError(
            "the noise along the Hessian's eigenvectors needs a loss that is a mean over samples: use bn_mode 'eval' "
            "or 'frozen-batch', or leave eigenvectors out"
        )
    hessian = HessianOperator(objective, parameters)
    if isinstance(asked, int):
        report(f"{asked} eigenvectors of the Hessian")
        found = lanczos(hessian, top=asked, seed=seed, vectors=True).vectors
    else:
        found = _given(asked, hessian)
    rows = torch.linalg.qr(found.T.double()).Q.T.to(hessian.dtype)
    return [hessian.split(row) for row in rows]


def _given(asked: Tensor, hessian: HessianOperator) -> Tensor:
    """Eigenvectors that were given, as rows.

    Raises:
        UserError: they are of another size, aren't finite and real, or don't span as many dimensions.
    """
    vectors = asked.detach()[None] if asked.ndim == 1 else asked.detach()
    if vectors.ndim != 2 or vectors.shape[1] != hessian.size:
        raise UserError(
            f"eigenvectors of the shape {(*asked.shape,)}: give one a row, of as many elements as the parameters on "
            f"which the loss depends have, {hessian.size:,}"
        )
    if vectors.is_complex() or not vectors.isfinite().all():
        raise UserError("eigenvectors must be real and finite: give those of a symmetric matrix")
    if len(vectors) and torch.linalg.matrix_rank(vectors.double()) < len(vectors):
        raise UserError(f"the {len(vectors)} eigenvectors depend on one another: give such that are orthogonal")
    return vectors.to(hessian.device, hessian.dtype)


def _estimates(found: InnerProducts, size: int, vectors: int, common: dict[str, Any]) -> list[NoiseEstimate]:
    """The rows: the whole model, its layers, its tensors."""
    names, whole = found.names, [*range(len(found.names))]
    layers: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        layers.setdefault(name.rpartition(".")[0], []).append(index)
    scopes = [("all", "all", whole), *((layer, "layer", some) for layer, some in layers.items())]
    scopes += [(name, "tensor", [index]) for index, name in enumerate(names)]
    made = []
    for scope, kind, some in scopes:
        q, p, s = (values[some].sum(axis=0) for values in (found.squares, found.products, found.square_of_mean))
        each = moments(q, p, float(s), found.gram[some].sum(axis=0), size)
        share: dict[str, Any] = {}
        if kind == "all" and vectors:
            value, error = top_share(found.along, q, p, float(s))
            share = {"top_share": _or_none(value), "top_share_error": _or_none(error), "top_vectors": vectors}
        made.append(
            NoiseEstimate(
                scope=scope,
                scope_kind=kind,
                gradient_square=each.gradient_square,
                gradient_square_error=_or_none(each.gradient_square_error),
                noise_trace=each.noise_trace,
                noise_trace_error=_or_none(each.noise_trace_error),
                covariance=_or_none(each.covariance),
                noise_skewness=_or_none(each.skewness),
                heavy_tails=None if math.isnan(each.skewness) else pieces_needed(each.skewness) > len(q),
                **share,
                **common,
            )
        )
    return made


def _or_none(value: float) -> float | None:
    """None for what isn't known."""
    return None if math.isnan(value) or not np.isfinite(value) else value
