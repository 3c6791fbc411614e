"""How sharp: the measures of one state of a model, as rows that a trace keeps.

`sharpness` is the call for any model; the in-training probe and ``tvlars-probe sharpness`` make the same rows by
`measure`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tvlars_probe.curvature.density import spectral_density
from tvlars_probe.curvature.epsilon import DIMENSIONS, EPSILONS, epsilon_sharpness
from tvlars_probe.curvature.hutchpp import hutchpp
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.curvature.results import ENGINES, OPERATORS
from tvlars_probe.curvature.scaling import norm_of, scaled
from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pandas as pd

    from tvlars_probe.curvature.operators import Operator
    from tvlars_probe.curvature.ranks import Shards
    from tvlars_probe.curvature.results import Density, Eigenvalues
    from tvlars_probe.curvature.scaling import Rates

    Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to compute.

    Attributes:
        operators: among "hessian", "effective" and "relative".
        top: eigenvalues from the top of the spectrum.
        bottom: eigenvalues from the bottom.
        trace: the trace, too.
        density: the spectral density, too.
        epsilon: Keskar's ε-sharpness, too (of the loss itself: once, whatever the operators).
        per_layer: eigenvalues and trace of each layer's block, too.
        engine: "lanczos" or "pyhessian" (eigenvalues and trace of the raw Hessian).
        tol: relative residual of eigenvalues.
        max_matvecs: products after which an eigenvalue is given up.
        trace_matvecs: products spent on a trace.
        density_probes: random vectors of a density.
        density_steps: Lanczos steps from each.
        seed: of everything random.
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
    max_matvecs: int = 1000
    trace_matvecs: int = 45
    density_probes: int = 4
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
        if self.engine == "pyhessian":
            self._check_pyhessian()

    def _check_pyhessian(self) -> None:
        if self.density:
            raise UserError("PyHessian's density needs torch.eig, which torch no longer has: use --engine lanczos")
        if self.operators != ("hessian",) or self.bottom:
            raise UserError(
                "PyHessian computes the top eigenvalues and the trace of the raw Hessian: use --engine lanczos"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure; the columns of the table ``curvature`` that don't concern a run."""

    measure: str
    operator: str
    scope: str = "all"
    scope_kind: str = "all"
    rank: int | None = None
    value: float
    error: float | None
    tol: float | None = None
    converged: bool | None = None
    matvecs: int | None = None
    samples: int
    sample_id: str | None = None
    loss: float
    bn_mode: str
    seed: int
    precision: str
    engine: str
    epsilon: float | None = None
    dimensions: int | None = None
    rate_step: int | None = None
    limit: float | None = None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """Everything measured of one state.

    Attributes:
        measurements: figures.
        densities: spectral densities by operator.
        vectors: the top eigenvector by operator, on the model's device.
        left_out: parameters that the loss doesn't depend on.
    """

    measurements: tuple[Measurement, ...]
    densities: Mapping[str, Density] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def top(self) -> float:
        """The top eigenvalue of the first operator, over all parameters."""
        found = (m.value for m in self.measurements if m.measure == "eigenvalue" and m.rank == 1 and m.scope == "all")
        return next(found)

    def frame(self) -> pd.DataFrame:
        """The figures as a pandas frame."""
        import pandas as pd

        return pd.DataFrame([asdict(m) for m in self.measurements])


def sharpness(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    bn_mode: str = "eval",
    parameters: Callable[[str], bool] | None = None,
    rates: Rates | None = None,
    shards: Shards | None = None,
    report: Report = lambda _: None,
    **measures: Any,
) -> Sharpness:
    """Measure the curvature of a model's loss on some data.

    The model is left as it was: parameters, buffers, gradients, modes, random generators.

    Args:
        model: any model, on any device; DDP and compiled wrappers taken off.
        loss_fn: mean loss of ``model(inputs)`` and ``targets``, such as `torch.nn.CrossEntropyLoss`.
        data: a pair (inputs, targets) or batches of such pairs, which count by their sizes.
        bn_mode: "eval", "train" or "frozen-batch"; see `tvlars_probe.curvature.batch_norm`.
        parameters: which take part, by name; all that require a gradient by default.
        rates: the optimizer's, for the effective operator; see `tvlars_probe.applied_rates`.
        shards: ranks that each hold a part of the data; ``Shards.of_process_group()`` under DDP.
        report: called with a line about what is being computed.
        **measures: fields of `Measures`: ``operators``, ``top``, ``trace``, ``density``, ``per_layer``, ``tol``, ...

    Raises:
        UserError: nothing to measure, or a loss that is not finite.
    """
    is_pair = isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)
    batches: list[tuple[Tensor, ...]] = [data] if is_pair else list(data)  # type: ignore[list-item, arg-type]
    objective = Objective(model, supervised(loss_fn), batches, bn_mode=bn_mode, shards=shards)
    chosen = {name: p for name, p in model.named_parameters() if parameters is None or parameters(name)}
    return measure(objective, chosen, Measures(**measures), rates=rates, report=report)


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
        parameters: by name.
        measures: what to compute.
        rates: for the effective operator.
        sample_id: of the data, for the rows.
        starts: vectors to start Lanczos from, by operator.
        report: called with a line about what is being computed.
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
        measurements=tuple(work.rows), densities=work.densities, vectors=work.vectors, left_out=work.left_out
    )


def by_layer(parameters: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parameters of each layer, a layer being the module that holds them."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, p in parameters.items():
        if p.requires_grad:
            layers.setdefault(name.rpartition(".")[0], {})[name] = p
    return layers


def sample_hash(indices: Sequence[int]) -> str:
    """Identifies a sample by the indices of its members."""
    text = ",".join(str(index) for index in indices)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass
class _Work:
    """Collects the rows of one state."""

    objective: Objective
    measures: Measures
    rates: Rates | None
    loss: float
    sample_id: str | None
    starts: dict[str, Tensor]
    report: Report
    rows: list[Measurement] = field(default_factory=list)
    densities: dict[str, Density] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def operator(
        self, kind: str, scope: str, scope_kind: str, parameters: Mapping[str, Tensor], *, whole: bool
    ) -> None:
        """One operator on some parameters."""
        m = self.measures
        if kind == "relative":
            parameters = {name: p for name, p in parameters.items() if norm_of(p).item() > 0}
        try:
            hessian = HessianOperator(self.objective, parameters)
        except UserError:
            if whole:
                raise
            return  # a layer that the loss doesn't depend on
        self.left_out = hessian.left_out if whole else self.left_out
        operator = scaled(kind, hessian, self.rates)
        where = {"operator": kind, "scope": scope, "scope_kind": scope_kind}
        is_effective = kind == "effective" and self.rates is not None
        where_rates = {"rate_step": self.rates.step, "limit": self.rates.limit} if is_effective and self.rates else {}
        title = f"{kind} operator, {scope}"
        peer = self._peer(hessian)
        if m.top + m.bottom:
            found = self._eigenvalues(operator, hessian, peer, kind, title, whole)
            for one in found.values:
                self._add("eigenvalue", one.value, one.residual, seconds=found.seconds, matvecs=found.matvecs,
                          rank=one.rank, tol=m.tol, converged=one.converged, **where, **where_rates)  # fmt: skip
        if m.trace:
            self.report(f"{title}: trace")
            estimate = (
                peer.trace(num_matvecs=m.trace_matvecs, seed=m.seed)
                if peer
                else hutchpp(operator, num_matvecs=m.trace_matvecs, seed=m.seed)
            )
            self._add("trace", estimate.value, estimate.standard_error, seconds=estimate.seconds,
                      matvecs=estimate.matvecs, **where, **where_rates)  # fmt: skip
        if m.density and whole:
            self.report(f"{title}: density")
            self.densities[kind] = spectral_density(
                operator, probes=m.density_probes, steps=m.density_steps, seed=m.seed,
                report=lambda made, total: self.report(f"{title}: density, product {made} of {total}"),
            )  # fmt: skip

    def _peer(self, hessian: HessianOperator) -> Any:
        if self.measures.engine == "lanczos":
            return None
        from tvlars_probe.curvature.pyhessian_engine import PyHessianEngine

        return PyHessianEngine(self.objective, hessian)

    def _eigenvalues(
        self, operator: Operator, hessian: HessianOperator, peer: Any, kind: str, title: str, whole: bool
    ) -> Eigenvalues:
        m = self.measures
        if peer is not None:
            self.report(f"{title}: eigenvalues by PyHessian")
            return peer.eigenvalues(top=m.top, tol=m.tol, seed=m.seed)  # type: ignore[no-any-return]
        top, bottom = m.top, m.bottom
        if not whole:  # a small layer may have fewer than asked for
            top = min(top, hessian.size)
            bottom = min(bottom, hessian.size - top)
        start = self.starts.get(kind) if whole else None
        found = lanczos(
            operator, top=top, bottom=bottom, tol=m.tol, seed=m.seed, max_matvecs=m.max_matvecs, vectors=whole,
            start=start if start is not None and len(start) == hessian.size else None,
            report=lambda made, excess: self.report(f"{title}: product {made}, residual {excess:.1e} of its limit"),
        )  # fmt: skip
        if whole and m.top:
            self.vectors[kind] = found.vectors[0]
        return found

    def epsilon(self, parameters: Mapping[str, Tensor]) -> None:
        """Keskar's sharpness in the whole space and in a random subspace, for both sizes of the box."""
        for dimensions in (None, DIMENSIONS):
            for epsilon in EPSILONS:
                space = "the whole space" if dimensions is None else f"{dimensions} dimensions"
                self.report(f"epsilon-sharpness {epsilon:g} in {space}")
                found = epsilon_sharpness(
                    self.objective, parameters, epsilon=epsilon, dimensions=dimensions, seed=self.measures.seed
                )
                self._add("epsilon_sharpness", found.value, None, seconds=found.seconds, matvecs=found.evaluations,
                          operator="none", epsilon=epsilon, dimensions=found.dimensions)  # fmt: skip

    def _add(self, measure: str, value: float, error: float | None, **further: Any) -> None:
        dtype = next(self.objective.model.parameters()).dtype
        self.rows.append(
            Measurement(
                measure=measure, value=value, error=error, samples=self.objective.samples, sample_id=self.sample_id,
                loss=self.loss, bn_mode=self.objective.bn_mode, seed=self.measures.seed,
                precision=str(dtype).removeprefix("torch."), engine=self.measures.engine, **further,
            )
        )  # fmt: skip
