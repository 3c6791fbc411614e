"""`sharpness`, which measures the curvature of any model's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tvlars_probe.curvature.measures import Measures
from tvlars_probe.curvature.measuring import measure
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tvlars_probe.collectives import Ranks
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
    report: Report = lambda _: None,
    **measures: Any,
) -> Sharpness:
    """Measure the curvature of a model's loss on some data.

    The model is left as it was: parameters, buffers, gradients, modes, random generators.

    Args:
        model: any model, on any device, with or without wrappers by DDP or `torch.compile`.
        loss_fn: mean loss of ``model(inputs)`` and ``targets``, such as `torch.nn.CrossEntropyLoss`.
        data: a pair (inputs, targets), or batches of such pairs, each weighted by its number of samples.
        bn_mode: "eval", "train" or "frozen-batch"; see `tvlars_probe.curvature.batch_norm`.
        parameters: tells by a parameter's name whether it takes part; by default all that require a gradient do.
        rates: the optimizer's, for the effective operator; see `tvlars_probe.applied_rates`.
        shards: ranks that each hold a part of the data; ``Ranks.of_process_group()`` under DDP.
        report: called with a line about what is being computed.
        **measures: fields of `Measures`: ``operators``, ``top``, ``trace``, ``density``, ``per_layer``, ``tol``, ...

    Raises:
        UserError: something can't be measured as asked.
        NonFiniteLossError: the loss, or a product with the Hessian, isn't finite.
    """
    model = unwrap(model)
    # A list of two tensors is what data loaders yield for a pair; a tuple of two pairs holds no tensor directly.
    is_pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    batches: list[tuple[Tensor, ...]] = [tuple(data)] if is_pair else list(data)  # type: ignore[arg-type]
    objective = Objective(model, supervised(loss_fn), batches, bn_mode=bn_mode, shards=shards)
    chosen = {name: p for name, p in model.named_parameters() if parameters is None or parameters(name)}
    if isinstance(operator := measures.get("operators"), str):
        measures["operators"] = (operator,)
    return measure(objective, chosen, Measures(**measures), rates=rates, report=report)
