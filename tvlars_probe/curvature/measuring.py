"""All measures of curvature of one state of a model, as rows that a trace keeps."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tvlars_probe.curvature.figures import Figures
from tvlars_probe.curvature.results import Sharpness
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from tvlars_probe.curvature.measures import Measures
    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.curvature.updates import Update

    Report = Callable[[str], None]


def measure(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    measures: Measures,
    *,
    rates: Rates | None = None,
    update: Update | None = None,
    sample_id: str | None = None,
    report: Report = lambda _: None,
) -> Sharpness:
    """Compute ``measures`` of an objective with respect to some parameters.

    Args:
        objective: f.
        parameters: the parameters of which f is a function, by name.
        measures: what to compute.
        rates: the optimizer's rates, which the effective operator needs.
        update: the update, made or coming, which directional and critical sharpness need.
        sample_id: name of the sample, for the rows.
        report: called with a line about what is being computed.

    Raises:
        UserError: something can't be measured as asked.
        NonFiniteLossError: the loss, or a product with the Hessian, isn't finite.
    """
    if measures.of_updates and update is None:
        raise UserError("directional and critical sharpness need an update of the weights: give the optimizer")
    with objective.held():
        work = Figures(objective, measures, rates, objective.loss(), sample_id, report)
        work.leave_out(parameters)
        if measures.of_operators:
            _of_operators(work, parameters)
        if measures.epsilon:
            work.epsilon(parameters)
        if update is not None and measures.directional_sharpness:
            work.directional(parameters, update)
        if update is not None and measures.critical_sharpness:
            work.critical(parameters, update)
        work.free_graphs()
    # Not held: each mini-batch's loss is held by itself, with BatchNorm's statistics its own.
    if measures.batch_sharpness:
        work.batches(parameters)
    return Sharpness(
        samples=objective.samples,
        sample_id=sample_id,
        loss=work.loss,
        bn_mode=objective.bn_mode,
        measurements=tuple(work.rows),
        densities=work.densities,
        layer_densities=work.layer_densities,
        vectors=work.vectors,
        left_out=tuple(work.left_out),
        notes=tuple(work.notes.values()),
    )


def _of_operators(work: Figures, parameters: Mapping[str, Tensor]) -> None:
    for operator in work.measures.operators:
        work.operator(operator, "all", "all", parameters, whole=True)
        if work.measures.per_layer:
            for layer, some in by_layer(parameters).items():
                work.operator(operator, layer, "layer", some, whole=False)


def by_layer(parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group the parameters that require a gradient by layer: the module that holds them directly, by its name."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, p in parameters.items():
        if p.requires_grad:
            layers.setdefault(name.rpartition(".")[0], {})[name] = p
    return layers


def sample_hash(indices: Sequence[int]) -> str:
    """A name for a sample: the hash of its samples' indices, in their order."""
    text = ",".join(str(index) for index in indices)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
