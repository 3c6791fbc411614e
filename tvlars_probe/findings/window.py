"""What rules see: the steps that cross to the host in one flush, and what is known of the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tvlars_probe.optimizers.group_description import GroupDescription

    Flags = NDArray[np.bool_]
    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tensors:
    """What is known of the recorded tensors, each array of shape (tensors,).

    Attributes:
        names: their names.
        adapted: whether a trust ratio scales the tensor's rate.
        excluded: whether the optimizer scales rates by trust ratios, but not this tensor's.
        weight_cap: where ‖w‖ is clamped in the trust ratio; infinite for no clamp.
        divisor_cap: where the divisor of the trust ratio is clamped; infinite for no clamp.
        ratio_cap: where the trust ratio itself is clipped; infinite for no clip.
        rounding: unit roundoff of the weights' type, half the distance from 1 to the next number.
        dims: numbers of dimensions.
        has_phi: whether any trust ratio holds a φ.
        adapted_at: the places of the adapted tensors.
        adapted_names: their names.
        excluded_at: the places of the excluded tensors.
        weights_at: the places of the tensors of two or more dimensions.
    """

    names: Sequence[str]
    adapted: Flags
    excluded: Flags
    weight_cap: Floats
    divisor_cap: Floats
    ratio_cap: Floats
    rounding: Floats
    dims: NDArray[np.intp]
    has_phi: bool = False
    adapted_at: NDArray[np.intp] = field(init=False)
    adapted_names: Sequence[str] = field(init=False)
    excluded_at: NDArray[np.intp] = field(init=False)
    weights_at: NDArray[np.intp] = field(init=False)

    def __post_init__(self) -> None:
        # Once, and not in each flush; rules tell tensors that have changed by the identity of the names.
        object.__setattr__(self, "adapted_at", np.flatnonzero(self.adapted))
        object.__setattr__(self, "adapted_names", [self.names[k] for k in self.adapted_at.tolist()])
        object.__setattr__(self, "excluded_at", np.flatnonzero(self.excluded))
        object.__setattr__(self, "weights_at", np.flatnonzero(self.dims > 1))

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        descriptions: Sequence[GroupDescription],
        dims: Sequence[int],
        roundings: Sequence[float],
    ) -> Self:
        """Read them from each tensor's description, its number of dimensions, and its unit roundoff."""
        adapted = np.array([bool(d.adapts(ndim)) for d, ndim in zip(descriptions, dims, strict=True)], dtype=bool)
        scaled = np.array([d.is_known and d.scaling.kind == "trust-ratio" for d in descriptions], dtype=bool)

        def caps(values: Sequence[float | None]) -> Floats:
            return np.where(adapted, np.array([np.inf if v is None else v for v in values], dtype=np.float64), np.inf)

        return cls(
            names=names,
            adapted=adapted,
            excluded=scaled & ~adapted,
            weight_cap=caps([d.scaling.weight_cap for d in descriptions]),
            divisor_cap=caps([d.scaling.divisor_cap for d in descriptions]),
            ratio_cap=caps([None if d.scaling.clip == "none" else 1.0 for d in descriptions]),
            rounding=np.array(roundings, dtype=np.float64),
            dims=np.array(dims, dtype=np.intp),
            has_phi=any(d.scaling.phi is not None for d in descriptions),
        )


# Weights first: they are those before the update, and spoil the gradients of other tensors, not the reverse.
NORMS = ("weight_norm", "grad_norm")
"""The figures that say whether a tensor is finite."""


@dataclass(frozen=True)
class Window:
    """Some steps that follow each other.

    Attributes:
        first_step: index of the first.
        losses: mean loss of each step, (steps,); what it holds where none was told says nothing.
        told: whether a loss was told, (steps,).
        grad_norms: ‖g‖ over all tensors, before clipping where that is known, (steps,); NaN where not recorded.
        before_clipping: whether that norm is one before clipping, (steps,).
        phi: φ of the first parameter group, (steps,); NaN for optimizers without.
        active: whether a tensor's figures were recorded, (steps, tensors).
        lr: learning rates, (steps, tensors).
        figures: weight_norm, grad_norm, update_norm, trust_ratio, direction_norm and phi, each (steps, tensors); NaN
            where there is no figure.
        tensors: what is known of the tensors.
        batches: samples (or tokens) of each step's batch, over all ranks, (steps,); NaN where not told.
        gradient_square: estimate of |G|² of each step from its pieces, over all tensors, (steps,); NaN where there is
            none. See the table ``noise``.
        noise_trace: the same of tr Σ.
    """

    first_step: int
    losses: Floats
    told: Flags
    grad_norms: Floats
    before_clipping: Flags
    phi: Floats
    active: Flags
    lr: Floats
    figures: Mapping[str, Floats]
    tensors: Tensors
    batches: Floats = field(default_factory=lambda: np.empty(0))
    gradient_square: Floats = field(default_factory=lambda: np.empty(0))
    noise_trace: Floats = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        for name in ("batches", "gradient_square", "noise_trace"):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self), np.nan))

    def __len__(self) -> int:
        return len(self.losses)

    @cached_property
    def not_finite(self) -> Flags:
        """Whether the loss, or the norm of some tensor's weights or gradient, isn't finite, by step."""
        bad: Flags = self.told & ~np.isfinite(self.losses)
        for quantity in NORMS:
            figure = self.figures[quantity]
            # A sum shows in one pass whether any is: only rows without a finite sum are looked at.
            with np.errstate(over="ignore"):
                rows = np.flatnonzero(~np.isfinite(figure.sum(axis=1)))
            if len(rows):
                bad[rows] |= (self.active[rows] & ~np.isfinite(figure[rows])).any(axis=1)
        return bad
