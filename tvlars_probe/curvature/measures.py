"""What a measurement of curvature is to compute. This module needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from tvlars_probe.admission.numbers import real, whole
from tvlars_probe.curvature.results import CRITERIA, ENGINES, OPERATORS
from tvlars_probe.errors import UserError, unknown

IN_TRAINING = ("eigenvalue", "batch", "directional", "critical")
"""What may be measured while a run trains: the top eigenvalue, and three sharpnesses that need no operator's name."""


_OPTIONAL = ("batch_size", "density_probes")
_WHOLE = ("top", "bottom", "seed", "max_matvecs", "trace_matvecs", "density_steps", *_OPTIONAL)
"""The settings that are whole numbers, and those of them that may be None."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to compute.

    Attributes:
        operators: among "hessian", "effective" and "relative" (see `tvlars_probe.curvature.scaling`), "ggn" and
            "adaptive" (see `tvlars_probe.curvature.gauss_newton` and `tvlars_probe.curvature.adaptive`).
        top: number of eigenvalues from the top of the spectrum.
        bottom: number of eigenvalues from the bottom.
        trace: whether to estimate the trace.
        density: whether to estimate the spectral density.
        epsilon: whether to search for Keskar's ε-sharpness. It belongs to the loss, not to an operator, and is measured
            once.
        batch_sharpness: whether to measure the curvature along mini-batches' own gradients, once for the loss; see
            `tvlars_probe.curvature.batch_sharpness`.
        batch_size: samples of such a mini-batch.
        directional_sharpness: whether to measure the Hessian's curvature along the update, made or coming; see
            `tvlars_probe.curvature.directional`.
        critical_sharpness: whether to find the multiple of the update at which the loss rises; see
            `tvlars_probe.curvature.critical`.
        critical_tol: width of the bracket of that multiple, as a share of it.
        per_layer: whether to measure eigenvalues, trace and density also of each layer's diagonal block.
        engine: "lanczos" or "pyhessian"; the latter computes top eigenvalues and trace of the raw Hessian only.
        tol: relative error of eigenvalues.
        criterion: what counts as their error; see `tvlars_probe.curvature.lanczos`.
        max_matvecs: products after which an eigenvalue is given up.
        trace_matvecs: products spent on a trace.
        density_probes: number of random vectors of a density; None chooses it by the operator's size.
        density_steps: Lanczos steps from each random vector of a density.
        seed: of everything random.

    Raises:
        UserError: a setting outside its range, or nothing to measure.
    """

    operators: tuple[str, ...] = ("hessian",)
    top: int = 1
    bottom: int = 0
    trace: bool = False
    density: bool = False
    epsilon: bool = False
    batch_sharpness: bool = False
    batch_size: int | None = None
    directional_sharpness: bool = False
    critical_sharpness: bool = False
    critical_tol: float = 0.01
    per_layer: bool = False
    engine: str = "lanczos"
    tol: float = 1e-3
    criterion: str = "residual"
    max_matvecs: int = 1000
    trace_matvecs: int = 45
    density_probes: int | None = None
    density_steps: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for operator in self.operators:
            if operator not in OPERATORS:
                raise unknown("operator", operator, OPERATORS)
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.criterion not in CRITERIA:
            raise unknown("criterion", self.criterion, CRITERIA)
        for name in _WHOLE:
            given = whole(name, getattr(self, name), "a number", least=None, optional=name in _OPTIONAL)
            object.__setattr__(self, name, given)
        if not real(self.tol) > 0:
            raise UserError(f"tolerance {self.tol!r:.60} is too small (allowed: above 0)")
        if self.top < 0 or self.bottom < 0:
            raise UserError(f"{min(self.top, self.bottom)} eigenvalues can't be computed (allowed: 0 or more)")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is no seed (allowed: 0 or more)")
        if not (self.of_operators or self.of_updates or self.epsilon or self.batch_sharpness):
            raise UserError(
                "nothing to measure: ask for eigenvalues (top, bottom), trace, density, epsilon, or batch, directional "
                "or critical sharpness"
            )
        if self.batch_sharpness and self.batch_size is None:
            raise UserError("batch sharpness needs batch_size, the number of samples of the run's mini-batches")
        if not 0 < real(self.critical_tol) < 1:
            raise UserError(f"critical_tol {self.critical_tol!r:.60} is no share (allowed: above 0, below 1)")
        least = {"batch_size": 1, "max_matvecs": 1, "density_steps": 1, "density_probes": 1, "trace_matvecs": 6}
        for name, allowed in least.items():
            value = getattr(self, name)
            if value is not None and value < allowed:
                raise UserError(f"{name.replace('_', '-')} {value} is too few (allowed: {allowed} or more)")
        if self.engine == "pyhessian":
            self._check_pyhessian()

    @property
    def of_operators(self) -> bool:
        """Whether an operator's eigenvalues, trace or density are asked for."""
        return bool(self.top or self.bottom or self.trace or self.density)

    @property
    def of_updates(self) -> bool:
        """Whether something is asked for that depends on an update."""
        return self.directional_sharpness or self.critical_sharpness

    def _check_pyhessian(self) -> None:
        if self.of_updates or self.batch_sharpness:
            raise UserError("PyHessian has no batch, directional or critical sharpness: use --engine lanczos")
        if self.density:
            raise UserError("PyHessian's density needs torch.eig, which torch no longer has: use --engine lanczos")
        if self.operators != ("hessian",) or self.bottom:
            raise UserError(
                "PyHessian computes the top eigenvalues and the trace of the raw Hessian: use --engine lanczos"
            )
