"""The trust ratios of one optimizer's step: constants of its description, or what follows from norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tvlars_probe.optimizers.trust_ratios import trust_ratios
from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.reductions import multi_tensor_norms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from tvlars_probe.optimizers.group_description import GroupDescription


class GroupStep(NamedTuple):
    """One parameter group in one step.

    Attributes:
        description: what the optimizer does to it.
        params: its parameters.
        lr: its learning rate; a tensor stays on its device.
    """

    description: GroupDescription
    params: list[Tensor]
    lr: Any

    @property
    def follows_from_norms(self) -> bool:
        """Whether the norms of a step give its trust ratios."""
        return "trust_ratio" in self.description.columns and self.description.scaling.kind == "trust-ratio"


class RatioFiller:
    """Fills the trust ratios, and what they divide by, into tables of one optimizer's figures.

    A table has a row for each of `COLUMNS` (those of the first three rows are read from) and a column for each
    parameter.
    """

    def __init__(self) -> None:
        self._policies: dict[Any, tuple[Tensor, Tensor]] = {}

    def fill_constants(self, table: Tensor, groups: Sequence[GroupStep]) -> None:
        """Fill the ratios that depend on no norm: 1, or a factor of the whole tensor's shape."""
        ratio = COLUMNS.index("trust_ratio")
        for group, span in _spans(groups):
            if "trust_ratio" not in group.description.columns:
                continue
            if group.description.scaling.kind == "none":
                table[ratio, span] = 1.0
            elif group.description.scaling.kind == "shape":
                for k, p in enumerate(group.params, start=span.start):
                    table[ratio, k] = group.description.shape_factor(tuple(p.shape))

    def fill_from_norms(self, table: Tensor, groups: Sequence[GroupStep], active: Sequence[bool]) -> None:
        """Fill the ratios that follow from the norms of whole tensors.

        Args:
            table: the figures.
            groups: the optimizer's groups.
            active: per parameter, whether it took part in the step.
        """
        ratio, divisor = COLUMNS.index("trust_ratio"), COLUMNS.index("direction_norm")
        for group, span in _spans(groups):
            if not group.follows_from_norms:
                continue
            # `trust_ratios` takes arrays of steps and tensors: here one step.
            weight_norm, grad_norm, dot = (row[None, span] for row in table[:3])
            # The direction is of the gradient as the optimizer takes it.
            scale = _gradient_scale(group.description, table, active)
            sign = -1.0 if group.description.maximize else 1.0
            decay, adapted = self._decay_and_adapted(group, table)
            found = trust_ratios(
                group.description,
                weight_norm=weight_norm,
                direction=grad_norm * scale,
                dot=dot * scale * sign,
                lr=group.lr,
                decay=decay,
                adapted=adapted,
            )
            table[ratio, span], table[divisor, span] = found.ratio[0], found.divisor[0]

    def _decay_and_adapted(self, group: GroupStep, like: Tensor) -> tuple[Tensor, Tensor]:
        """λ of each tensor, and whether it is adapted, on the device: kept, since the host waits for a transfer."""
        description, dims = group.description, tuple(p.ndim for p in group.params)
        key = (description, dims, like.device)
        if key not in self._policies:
            self._policies[key] = (
                like.new_tensor([description.decay_of(ndim) for ndim in dims]),
                torch.tensor([bool(description.adapts(ndim)) for ndim in dims], device=like.device),
            )
        return self._policies[key]


def _spans(groups: Sequence[GroupStep]) -> Iterator[tuple[GroupStep, slice]]:
    """Each group with the places of its parameters among the optimizer's."""
    offset = 0
    for group in groups:
        yield group, slice(offset, offset + len(group.params))
        offset += len(group.params)


def _gradient_scale(description: GroupDescription, table: Tensor, active: Sequence[bool]) -> Tensor | float:
    """The factor by which the optimizer itself clips all gradients together; 1 where it doesn't."""
    if description.max_grad_norm is None:
        return 1.0
    # Tensors without a gradient are left out here: their NaN says nothing, while another's must reach the sum.
    row = table[COLUMNS.index("grad_norm")].unbind()
    norms = [norm for norm, has_grad in zip(row, active, strict=True) if has_grad]
    if not norms:
        return 1.0
    total = multi_tensor_norms([torch.stack(norms)])[0]
    return 1.0 / (total / description.max_grad_norm).clip(min=1.0)
