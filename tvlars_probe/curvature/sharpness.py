"""`sharpness`, which measures the curvature of any model's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.curvature.measures import Measures
from tvlars_probe.curvature.measuring import measure
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.updates import coming_update
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.curvature.objective import Weights
    from tvlars_probe.curvature.results import Sharpness
    from tvlars_probe.curvature.scaling import Rates

    Report = Callable[[str], None]


def sharpness(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    bn_mode: str = "eval",
    parameters: Callable[[str], bool] | None = None,
    rates: Rates | None = None,
    shards: Ranks | None = None,
    weights: Weights | None = None,
    optimizer: Optimizer | None = None,
    report: Report = lambda _: None,
    **measures: Any,
) -> Sharpness:
    """Measure the curvature of a model's loss on some data.

    What is measured is f = Σ n·loss / Σ n over the batches of ``data``, n being the weight of a batch: its number of
    samples, or what ``weights`` says. Of one batch f is the loss itself, whatever kind it is. Where there are several,
    it is first tested that f doesn't depend on how they are cut, at the price of three forward passes over the data.

    The model is left as it was, bit for bit; `tvlars_probe.curvature.preserving` lists what that includes.

    Args:
        model: any model, on any device, with or without wrappers by DDP or `torch.compile`.
        loss_fn: mean loss of ``model(inputs)`` and ``targets``, such as `torch.nn.CrossEntropyLoss`.
        data: a pair (inputs, targets), or batches that are such pairs.
        bn_mode: "eval", "train" or "frozen-batch"; see `tvlars_probe.curvature.batch_norm`.
        parameters: tells by a parameter's name whether it takes part; by default all that require a gradient do.
        rates: the optimizer's, for the effective operator; see `tvlars_probe.applied_rates`.
        shards: ranks that each hold a part of the data; ``Ranks.of_process_group()`` under DDP.
        weights: n of a batch (inputs, targets), for losses that are means over something else than samples:
            ``lambda batch: class_weights[batch[1]].sum()``, or ``lambda batch: (batch[1] != -100).sum()``.
        optimizer: whose coming update directional and critical sharpness are measured along: the update that a copy of
            it makes from the gradient of f. It stays as it is.
        report: called with a line about what is being computed.
        **measures: fields of `Measures`: ``operators``, ``top``, ``trace``, ``batch_sharpness``, ``tol``, ...

    Raises:
        UserError: something can't be measured as asked; the loss isn't a mean over samples, or not by ``weights``.
        NonFiniteLossError: the loss, or a product with the Hessian, isn't finite.
    """
    model = unwrap(model)
    objective = Objective(model, supervised(loss_fn), data, bn_mode=bn_mode, shards=shards, weights=weights)
    chosen = {name: p for name, p in model.named_parameters() if parameters is None or parameters(name)}
    if isinstance(operator := measures.get("operators"), str):
        measures["operators"] = (operator,)
    asked = Measures(**measures)
    update = coming_update(objective, chosen, optimizer) if optimizer is not None and asked.of_updates else None
    return measure(objective, chosen, asked, rates=rates, update=update, report=report)
