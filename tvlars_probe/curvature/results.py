"""What estimators return: small frozen records that carry their doubt. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


OPERATORS = ("hessian", "effective", "relative")
ENGINES = ("lanczos", "pyhessian")
BN_MODES = ("eval", "train", "frozen-batch")


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """One eigenvalue λ of a symmetric operator A.

    Attributes:
        rank: 1, 2, ... from the top of the spectrum, −1, −2, ... from the bottom.
        value: λ.
        residual: ‖A v − λ v‖₂ for a unit vector v: an eigenvalue lies within this distance.
        converged: whether the residual reached the tolerance asked for.
    """

    rank: int
    value: float
    residual: float
    converged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Eigenvalues:
    """Eigenvalues at the ends of a spectrum.

    Attributes:
        values: from the top down, then from the bottom up.
        tol: relative residual asked for.
        matvecs: products with the operator.
        seconds: wall-clock time.
        vectors: unit eigenvectors as rows, in the order of ``values`` (a torch tensor), where asked for.
    """

    values: tuple[Eigenvalue, ...]
    tol: float
    matvecs: int
    seconds: float
    vectors: Any = None

    def __getitem__(self, rank: int) -> Eigenvalue:
        for value in self.values:
            if value.rank == rank:
                return value
        raise KeyError(f"no eigenvalue of rank {rank} (there are {', '.join(str(v.rank) for v in self.values)})")

    @property
    def top(self) -> float:
        """The largest eigenvalue: of a Hessian, the sharpness."""
        return self[1].value

    @property
    def converged(self) -> bool:
        """Whether all of them did."""
        return all(value.converged for value in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEstimate:
    """An unbiased estimate of a trace.

    Attributes:
        value: estimate.
        standard_error: of it; 0 where the sketch spans the whole space.
        matvecs: products with the operator.
        seconds: wall-clock time.
    """

    value: float
    standard_error: float
    matvecs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """An estimate of a spectral density: the share of eigenvalues per unit of λ.

    Attributes:
        nodes: places of the quadrature, over all probes.
        weights: their shares; they sum to 1.
        grid: places where the smoothed density is given.
        density: on the grid; each node is spread to a Gaussian of standard deviation ``sigma``.
        standard_error: of the density, from the spread over probes; NaN with one probe.
        sigma: width of the smoothing, in units of λ.
        matvecs: products with the operator.
        probes: random vectors.
        seconds: wall-clock time.
    """

    nodes: Floats
    weights: Floats
    grid: Floats
    density: Floats
    standard_error: Floats
    sigma: float
    matvecs: int
    probes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonSharpness:
    """Keskar's sharpness: how much the loss f can rise in a small box around the weights.

    Attributes:
        epsilon: size of the box: |δ_i| <= ε(|w_i| + 1).
        dimensions: of the random subspace searched; None for the whole space.
        value: 100·(max f − f)/(1 + f). The best point that was evaluated: a lower bound.
        loss: f.
        highest: max f.
        evaluations: of loss and gradient.
        seconds: wall-clock time.
    """

    epsilon: float
    dimensions: int | None
    value: float
    loss: float
    highest: float
    evaluations: int
    seconds: float
