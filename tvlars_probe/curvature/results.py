"""What estimators return: small frozen records of a figure and its error. This module needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.displays.displayed import Displayed, Shown, ShownTable
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


OPERATORS = ("hessian", "effective", "relative", "ggn", "adaptive")
"""See `tvlars_probe.curvature.scaling`, and for the last two `tvlars_probe.curvature.gauss_newton` and `adaptive`."""

ENGINES = ("lanczos", "pyhessian")

CRITERIA = ("residual", "kato-temple")
"""What counts as the error of an eigenvalue; see `tvlars_probe.curvature.lanczos`."""

BN_MODES = ("eval", "train", "frozen-batch")
"""See `tvlars_probe.curvature.batch_norm`."""

SLICE_BN_MODES = ("interpolated", "re-estimated")
"""Which running statistics BatchNorm has at a point of a slice through the loss.

"interpolated": those of the checkpoint, or on the line between two checkpoints'. "re-estimated": new ones at each
point.
"""


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """One eigenvalue λ of a symmetric operator A.

    Attributes:
        rank: 1, 2, ... from the top of the spectrum, −1, −2, ... from the bottom.
        value: λ.
        residual: ‖A v − λ v‖₂ for a unit vector v; an eigenvalue of A lies within this distance of λ.
        error: of λ, absolute: the largest of the residual (or the Kato-Temple estimate residual²/gap), the distance
            within which another eigenvalue may hide, rounding, the products' asymmetry, and what the cross-check found.
        converged: whether the error is within the tolerance, and no check of the products speaks against it.
    """

    rank: int
    value: float
    residual: float
    error: float
    converged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Eigenvalues:
    """Eigenvalues at the ends of a spectrum.

    Attributes:
        values: from the top down, then from the bottom up.
        tol: relative error asked for.
        criterion: what counted as the error, "residual" or "kato-temple".
        matvecs: products with the operator, for all values together.
        seconds: wall-clock time.
        symmetric: whether the products were those of a symmetric operator, to rounding; if not, nothing has converged.
        asymmetry: largest |⟨u, A v⟩ − ⟨A u, v⟩| found, as a share of the largest eigenvalue found; of PyHessian's, of
            ‖A v‖ for a random v.
        vectors: unit eigenvectors as rows, in the order of ``values`` (a torch tensor); None unless asked for.
        combined: with the vectors, w and A w (torch tensors): w is their sum and √n times a random unit vector.
    """

    values: tuple[Eigenvalue, ...]
    tol: float
    criterion: str
    matvecs: int
    seconds: float
    symmetric: bool = True
    asymmetry: float = 0.0
    vectors: Any = field(default=None, repr=False)
    combined: Any = field(default=None, repr=False)

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
        """Whether all values converged."""
        return all(value.converged for value in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEstimate:
    """An unbiased estimate of a trace.

    Attributes:
        value: the estimate.
        standard_error: of the estimate; 0 if it is exact.
        low: lower end of the 95 % interval, by Student's distribution: few samples need more than 1.96 errors.
        high: its upper end.
        matvecs: products with the operator.
        seconds: wall-clock time.
        symmetric: whether the products were those of a symmetric operator, to rounding.
        asymmetry: largest |⟨u, A v⟩ − ⟨A u, v⟩| found, as a share of the size of A on the vectors.
    """

    value: float
    standard_error: float
    low: float
    high: float
    matvecs: int
    seconds: float
    symmetric: bool = True
    asymmetry: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """An estimate of a spectral density: the share of eigenvalues per unit of λ.

    Attributes:
        nodes: nodes of the quadratures of all probes, ascending; values of λ.
        weights: shares of the nodes; they sum to 1.
        grid: values of λ at which the smoothed density is given.
        density: the density on the grid; each node is spread to a Gaussian of standard deviation ``sigma``.
        standard_error: of the density on the grid, by the random vectors and the quadrature; 0 if it is exact.
        low: lower end of the 95 % interval of the density on the grid; the quadrature's error is part of it.
        high: its upper end.
        sigma: width of the smoothing, in units of λ.
        matvecs: products with the operator.
        probes: number of random vectors; 0 if the eigenvalues of the matrix itself were computed.
        seconds: wall-clock time.
        symmetric: whether the products were those of a symmetric operator, to rounding.
        asymmetry: largest |⟨u, A v⟩ − ⟨A u, v⟩| found, as a share of the largest node.
        check: outcome of the check of the products; see `tvlars_probe.curvature.doubts`.
    """

    nodes: Floats = field(repr=False)
    weights: Floats = field(repr=False)
    grid: Floats = field(repr=False)
    density: Floats = field(repr=False)
    standard_error: Floats = field(repr=False)
    low: Floats = field(repr=False)
    high: Floats = field(repr=False)
    sigma: float
    matvecs: int
    probes: int
    seconds: float
    symmetric: bool = True
    asymmetry: float = 0.0
    check: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonSharpness:
    """Keskar's sharpness: how much the loss f can rise in a small box around the weights.

    Attributes:
        epsilon: size of the box: |δ_i| <= ε(|w_i| + 1).
        dimensions: of the random subspace searched; None for the whole space.
        value: 100·(max f − f)/(1 + f), a lower bound.
        loss: f at the weights themselves.
        highest: max f, the highest loss that the search evaluated.
        evaluations: number of evaluations of loss and gradient.
        seconds: wall-clock time.
    """

    epsilon: float
    dimensions: int | None
    value: float
    loss: float
    highest: float
    evaluations: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSharpness:
    """The curvature along mini-batches' own gradients; see `tvlars_probe.curvature.batch_sharpness`.

    Attributes:
        value: mean of g_Bᵀ·H_B·g_B/‖g_B‖² over the mini-batches.
        standard_error: of the mean; None of a single mini-batch.
        low: lower end of the mean's 95 % interval, by Student's distribution; None of a single mini-batch.
        high: its upper end.
        values: those of the mini-batches.
        batch_size: samples of a mini-batch.
        custom_functions: names of the `torch.autograd.Function`s in the graph of the loss, whose second derivative is
            theirs.
        matvecs: products with mini-batches' Hessians, one each.
        seconds: wall-clock time.
    """

    value: float
    standard_error: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...]
    batch_size: int
    custom_functions: tuple[str, ...]
    matvecs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalSharpness:
    """2/η_c; see `tvlars_probe.curvature.critical`.

    Attributes:
        value: the middle between ``low`` and ``high``; None where it isn't known.
        low: 2/(c·lr) at the smallest c at which the loss was seen to have risen.
        high: 2/(c·lr) at the largest c below it at which it hadn't.
        multiple: c, the multiple of the update.
        reason: why there is no value.
        evaluations: of the loss, by forward passes alone.
        seconds: wall-clock time.
    """

    value: float | None
    low: float | None
    high: float | None
    multiple: float | None
    reason: str | None
    evaluations: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionalSharpness:
    """ΔᵀHΔ/‖Δ‖² along an update Δ.

    Attributes:
        value: the figure; None for an update of zero.
        matvecs: products with the Hessian.
        seconds: wall-clock time.
    """

    value: float | None
    matvecs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure, as a row of the table ``curvature`` without the columns that concern a run.

    `tvlars_probe.traces.schema` defines the columns.
    """

    measure: str
    operator: str
    scope: str = "all"
    scope_kind: str = "all"
    rank: int | None = None
    value: float
    error: float | None
    error_kind: str | None = None
    low: float | None = None
    high: float | None = None
    tol: float | None = None
    converged: bool | None = None
    check: str | None = None
    matvecs: int | None = None
    samples: int
    sample_id: str | None = None
    loss: float
    bn_mode: str
    seed: int
    precision: str
    engine: str
    batch_size: int | None = None
    epsilon: float | None = None
    dimensions: int | None = None
    rate_step: int | None = None
    limit: float | None = None
    seconds: float


_SHOWN = ("measure", "operator", "scope", "rank", "value", "error", "low", "high", "converged")


@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(Displayed):
    """Everything measured of one state.

    Attributes:
        samples: number of samples of the loss.
        sample_id: hash of the samples' indices, if known.
        loss: mean loss over the samples.
        bn_mode: mode of BatchNorm.
        measurements: the figures.
        densities: spectral densities of the whole model, by operator.
        layer_densities: spectral densities of layers' blocks, by operator and layer.
        vectors: top eigenvector of the whole model, by operator (a torch tensor on the model's device).
        left_out: names of parameters that are frozen or on which the loss doesn't depend.
        notes: sentences on products that can't be trusted, with the remedy.
    """

    samples: int
    sample_id: str | None
    loss: float
    bn_mode: str
    measurements: tuple[Measurement, ...]
    densities: Mapping[str, Density] = field(default_factory=dict)
    layer_densities: Mapping[tuple[str, str], Density] = field(default_factory=dict)
    vectors: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def top(self) -> float:
        """The top eigenvalue of the first operator, over all parameters."""
        found = (m.value for m in self.measurements if m.measure == "eigenvalue" and m.rank == 1 and m.scope == "all")
        value = next(found, None)
        if value is None:
            raise UserError("no top eigenvalue was measured: ask for one (top=1), of weights that aren't all zero")
        return value

    def _shown(self) -> Shown:
        told = [m for m in self.measurements if m.scope == "all"]
        answer = f"{told[0].measure} {told[0].value:.4g} ({told[0].operator})" if told else "nothing measured"
        return Shown(
            head=f"{self.samples:,} samples, BatchNorm {self.bn_mode}",
            answer=answer,
            lines=self.notes,
            tables=(ShownTable.of_rows([*map(asdict, self.measurements)], dict(zip(_SHOWN, _SHOWN, strict=True))),),
        )

    def frame(self) -> pd.DataFrame:
        """The figures as a pandas frame."""
        import pandas as pd

        return pd.DataFrame([asdict(m) for m in self.measurements])
