"""All measures of curvature of one state of a model, as rows that a trace keeps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.curvature.density import spectral_density
from tvlars_probe.curvature.epsilon import DIMENSIONS, EPSILONS, epsilon_sharpness
from tvlars_probe.curvature.hutchpp import hutchpp
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.curvature.results import ENGINES, OPERATORS, EpsilonSharpness, Measurement, Sharpness
from tvlars_probe.curvature.scaling import norm_of, scaled
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.curvature.operators import Operator
    from tvlars_probe.curvature.results import Density, Eigenvalues, TraceEstimate
    from tvlars_probe.curvature.scaling import Rates

    Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to compute.

    Attributes:
        operators: among "hessian", "effective" and "relative"; see `tvlars_probe.curvature.scaling`.
        top: number of eigenvalues from the top of the spectrum.
        bottom: number of eigenvalues from the bottom.
        trace: whether to estimate the trace.
        density: whether to estimate the spectral density.
        epsilon: whether to search for Keskar's ε-sharpness. It belongs to the loss, not to an operator, and is measured
            once.
        per_layer: whether to measure eigenvalues, trace and density also of each layer's diagonal block.
        engine: "lanczos" or "pyhessian"; the latter computes top eigenvalues and trace of the raw Hessian only.
        tol: relative error of eigenvalues.
        criterion: what counts as their error; see `tvlars_probe.curvature.lanczos`.
        warm_criterion: what counts as their error if a start vector is given.
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
    per_layer: bool = False
    engine: str = "lanczos"
    tol: float = 1e-3
    criterion: str = "residual"
    warm_criterion: str = "kato-temple"
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
        if not self.tol > 0:
            raise UserError(f"tolerance {self.tol} is too small (allowed: above 0)")
        if self.top < 0 or self.bottom < 0:
            raise UserError(f"{min(self.top, self.bottom)} eigenvalues can't be computed (allowed: 0 or more)")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is no seed (allowed: 0 or more)")
        if not (self.top or self.bottom or self.trace or self.density or self.epsilon):
            raise UserError("nothing to measure: ask for eigenvalues (top, bottom), trace, density or epsilon")
        least = {"max_matvecs": 1, "density_steps": 1, "density_probes": 1, "trace_matvecs": 6}
        for name, allowed in least.items():
            value = getattr(self, name)
            if value is not None and value < allowed:
                raise UserError(f"{name.replace('_', '-')} {value} is too few (allowed: {allowed} or more)")
        if self.engine == "pyhessian":
            self._check_pyhessian()

    def _check_pyhessian(self) -> None:
        if self.density:
            raise UserError("PyHessian's density needs torch.eig, which torch no longer has: use --engine lanczos")
        if self.operators != ("hessian",) or self.bottom:
            raise UserError(
                "PyHessian computes the top eigenvalues and the trace of the raw Hessian: use --engine lanczos"
            )


def measure(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    measures: Measures,
    *,
    rates: Rates | None = None,
    sample_id: str | None = None,
    starts: Mapping[str, Tensor] | None = None,
    report: Report = lambda _: None,
) -> Sharpness:
    """Compute ``measures`` of an objective with respect to some parameters.

    Args:
        objective: f.
        parameters: the parameters of which f is a function, by name.
        measures: what to compute.
        rates: the optimizer's rates, which the effective operator needs.
        sample_id: name of the sample, for the rows.
        starts: vectors to start Lanczos from, by operator; for the whole model only.
        report: called with a line about what is being computed.

    Raises:
        UserError: something can't be measured as asked.
        NonFiniteLossError: the loss, or a product with the Hessian, isn't finite.
    """
    with objective.held():
        work = _Work(objective, measures, rates, objective.loss(), sample_id, dict(starts or {}), report)
        for operator in measures.operators:
            work.operator(operator, "all", "all", parameters, whole=True)
            if measures.per_layer:
                for layer, some in by_layer(parameters).items():
                    work.operator(operator, layer, "layer", some, whole=False)
        if measures.epsilon:
            work.epsilon(parameters)
    return Sharpness(
        samples=objective.samples,
        sample_id=sample_id,
        loss=work.loss,
        bn_mode=objective.bn_mode,
        measurements=tuple(work.rows),
        densities=work.densities,
        layer_densities=work.layer_densities,
        vectors=work.vectors,
        left_out=work.left_out,
    )


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


@dataclass
class _Work:
    """Measures one state, and collects the rows."""

    objective: Objective
    measures: Measures
    rates: Rates | None
    loss: float
    sample_id: str | None
    starts: dict[str, Tensor]
    report: Report
    rows: list[Measurement] = field(default_factory=list)
    densities: dict[str, Density] = field(default_factory=dict)
    layer_densities: dict[tuple[str, str], Density] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def operator(
        self, kind: str, scope: str, scope_kind: str, parameters: Mapping[str, Tensor], *, whole: bool
    ) -> None:
        """Measure one operator on some parameters: on the ``whole`` model, or on the block of a layer."""
        m = self.measures
        # S is zero on a tensor of zeros: its rows of S H S would only add eigenvalues of 0.
        if kind == "relative":
            parameters = {name: p for name, p in parameters.items() if norm_of(p).item() > 0}
            if not parameters:
                return  # all weights are zero, and the operator with them
        try:
            hessian = HessianOperator(self.objective, parameters)
        except UserError:
            if whole:
                raise
            return  # a layer that the loss doesn't depend on
        self.left_out = hessian.left_out if whole else self.left_out
        operator = scaled(kind, hessian, self.rates)
        where: dict[str, Any] = {"operator": kind, "scope": scope, "scope_kind": scope_kind}
        where |= {"rate_step": self.rates.step, "limit": self.rates.limit} if kind == "effective" and self.rates else {}
        title = f"{kind} operator, {scope}"
        peer = self._peer(hessian)
        if m.top + m.bottom:
            found = self._eigenvalues(operator, hessian, peer, kind, title, whole)
            self._add_eigenvalues(found, where)
        if m.trace:
            self.report(f"{title}: trace")
            how: dict[str, Any] = {"num_matvecs": m.trace_matvecs, "seed": m.seed}
            estimate: TraceEstimate = peer.trace(**how) if peer else hutchpp(operator, **how)
            self._add("trace", estimate, estimate.value, estimate.standard_error, error_kind="standard-error", **where)
        if m.density:
            found_density = spectral_density(
                operator,
                probes=m.density_probes,
                steps=m.density_steps,
                seed=m.seed,
                report=lambda made, total: self.report(f"{title}: density, product {made} of {total}"),
            )
            if whole:
                self.densities[kind] = found_density
            else:
                self.layer_densities[kind, scope] = found_density

    def _add_eigenvalues(self, found: Eigenvalues, where: dict[str, Any]) -> None:
        for one in found.values:
            about = {"rank": one.rank, "tol": found.tol, "converged": one.converged, "error_kind": found.criterion}
            self._add("eigenvalue", found, one.value, one.error, **about, **where)

    def _peer(self, hessian: HessianOperator) -> Any:
        """PyHessian's engine, or None for ours."""
        if self.measures.engine == "lanczos":
            return None
        # Here, because PyHessian is needed only by those who ask for it.
        from tvlars_probe.curvature.pyhessian_engine import PyHessianEngine

        return PyHessianEngine(self.objective, hessian)

    def _eigenvalues(
        self, operator: Operator, hessian: HessianOperator, peer: Any, kind: str, title: str, whole: bool
    ) -> Eigenvalues:
        m = self.measures
        if peer is not None:
            if m.top > hessian.size:
                raise UserError(f"{m.top} eigenvalues of an operator with {hessian.size}: ask for fewer")
            self.report(f"{title}: eigenvalues by PyHessian")
            return peer.eigenvalues(top=m.top, tol=m.tol, seed=m.seed)  # type: ignore[no-any-return]
        top, bottom = m.top, m.bottom
        if not whole:  # a small layer may have fewer than asked for
            top = min(top, hessian.size)
            bottom = min(bottom, hessian.size - top)
        start = self.starts.get(kind) if whole else None
        # Of another length it is of other parameters: a layer has been frozen since, or a tensor of zeros left out.
        start = start if start is not None and len(start) == hessian.size else None
        found = lanczos(
            operator,
            top=top,
            bottom=bottom,
            tol=m.tol,
            criterion=m.criterion if start is None else m.warm_criterion,
            seed=m.seed,
            max_matvecs=m.max_matvecs,
            vectors=whole,
            start=start,
            report=lambda made, excess: self.report(f"{title}: product {made}, error {excess:.1e} of its limit"),
        )
        # The next measurement may start from the whole model's eigenvector, never from a layer's.
        if whole and m.top:
            self.vectors[kind] = found.vectors[0].clone()  # a view would keep the others
        return found

    def epsilon(self, parameters: Mapping[str, Tensor]) -> None:
        """Measure ε-sharpness in the whole space and in a random subspace, for both sizes of the box."""
        # A model with no more parameters than the subspace has dimensions is searched once, as a whole.
        size = sum(p.numel() for p in parameters.values() if p.requires_grad)
        for dimensions in (None, DIMENSIONS) if size > DIMENSIONS else (None,):
            for epsilon in EPSILONS:
                space = "the whole space" if dimensions is None else f"{dimensions} dimensions"
                self.report(f"epsilon-sharpness {epsilon:g} in {space}")
                found = epsilon_sharpness(
                    self.objective, parameters, epsilon=epsilon, dimensions=dimensions, seed=self.measures.seed
                )
                box = {"operator": "none", "epsilon": epsilon, "dimensions": found.dimensions}
                self._add("epsilon_sharpness", found, found.value, None, **box)

    def _add(
        self,
        measure: str,
        found: Eigenvalues | TraceEstimate | EpsilonSharpness,
        value: float,
        error: float | None,
        **further: Any,
    ) -> None:
        dtype = next(self.objective.model.parameters()).dtype
        row = Measurement(
            measure=measure,
            value=value,
            error=error,
            matvecs=found.evaluations if isinstance(found, EpsilonSharpness) else found.matvecs,
            seconds=found.seconds,
            samples=self.objective.samples,
            sample_id=self.sample_id,
            loss=self.loss,
            bn_mode=self.objective.bn_mode,
            seed=self.measures.seed,
            precision=str(dtype).removeprefix("torch."),
            engine=self.measures.engine,
            **further,
        )
        self.rows.append(row)
