"""The figures of one state of a model: each estimator is called, checked, and put into rows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.curvature import doubts
from tvlars_probe.curvature.adaptive import OutputOperator
from tvlars_probe.curvature.batch_sharpness import batch_sharpness
from tvlars_probe.curvature.critical import critical_sharpness
from tvlars_probe.curvature.cross_check import cross_checked
from tvlars_probe.curvature.density import spectral_density
from tvlars_probe.curvature.directional import directional_sharpness
from tvlars_probe.curvature.epsilon import DIMENSIONS, EPSILONS, epsilon_sharpness
from tvlars_probe.curvature.gauss_newton import GaussNewtonOperator
from tvlars_probe.curvature.hutchpp import hutchpp
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.operators import HessianOperator, ScaledOperator
from tvlars_probe.curvature.results import (
    BatchSharpness,
    CriticalSharpness,
    DirectionalSharpness,
    Eigenvalues,
    EpsilonSharpness,
    Measurement,
    TraceEstimate,
)
from tvlars_probe.curvature.scaling import norm_of, scaled
from tvlars_probe.errors import NonFiniteLossError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from tvlars_probe.curvature.measures import Measures
    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.curvature.results import Density
    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.curvature.updates import Update


Found = Eigenvalues | TraceEstimate | EpsilonSharpness | BatchSharpness | CriticalSharpness | DirectionalSharpness


@dataclass(frozen=True)
class _Subject:
    """An operator on some parameters, and where its rows say it is.

    Attributes:
        kind: name of the operator.
        scope: "all", or a layer.
        scope_kind: "all" or "layer".
        hessian: the Hessian with respect to the parameters.
        operator: the operator made of it.
        peer: PyHessian's engine, or None for ours.
        further: other columns of the rows.
    """

    kind: str
    scope: str
    scope_kind: str
    hessian: HessianOperator
    operator: HessianOperator | ScaledOperator
    peer: Any
    further: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        """Whether it is of the whole model."""
        return self.scope_kind == "all"

    @property
    def title(self) -> str:
        """A name for progress and notes."""
        return f"{self.kind} operator, {self.scope}"

    def doing(self, what: str) -> str:
        """What is being computed, in words."""
        return f"{what} of {self.kind}, {'whole model' if self.is_whole else f'{self.scope_kind} {self.scope}'}"

    def rebuilt(self, product: Any) -> Any:
        """The operator made of another product with the Hessian."""
        return self.operator.over(product) if isinstance(self.operator, ScaledOperator) else product


@dataclass
class Figures:
    """Measures one state, and collects the rows."""

    objective: Objective
    measures: Measures
    rates: Rates | None
    loss: float
    sample_id: str | None
    report: Callable[[str], None]
    rows: list[Measurement] = field(default_factory=list)
    densities: dict[str, Density] = field(default_factory=dict)
    layer_densities: dict[tuple[str, str], Density] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    _last: tuple[tuple[str, ...], HessianOperator] | None = None

    def leave_out(self, parameters: Mapping[str, Tensor]) -> None:
        """Note the parameters that are frozen."""
        self.left_out |= dict.fromkeys(name for name, p in parameters.items() if not p.requires_grad)

    def free_graphs(self) -> None:
        """Let go of the graphs that are kept for operators on the same parameters."""
        self._last = None

    def operator(
        self, kind: str, scope: str, scope_kind: str, parameters: Mapping[str, Tensor], *, whole: bool
    ) -> None:
        """Measure one operator on some parameters: on the ``whole`` model, or on the block of a layer."""
        # S is zero on a tensor of zeros: its rows of S H S would only add eigenvalues of 0.
        if kind in ("relative", "adaptive"):
            parameters = {name: p for name, p in parameters.items() if norm_of(p).item() > 0}
            if not parameters:
                return  # all weights are zero, and the operator with them
        try:
            hessian = self._hessian_of(kind, parameters)
        except UserError:
            if whole:
                raise
            return  # a layer that the loss doesn't depend on
        if isinstance(hessian, OutputOperator) and not hessian.mean_square > 0:
            self.notes.setdefault(kind, "adaptive sharpness is unknown: each sample's outputs are all alike")
            return
        self.left_out |= dict.fromkeys(hessian.left_out if whole else ())
        of_rates = {"rate_step": self.rates.step, "limit": self.rates.limit} if self.rates else {}
        subject = _Subject(
            kind=kind,
            scope=scope,
            scope_kind=scope_kind,
            hessian=hessian,
            operator=scaled(kind, hessian, self.rates),
            peer=self._peer(hessian),
            further=of_rates if kind == "effective" else {},
        )
        if self.measures.top + self.measures.bottom:
            self._eigenvalues(subject)
        if self.measures.trace:
            self._trace(subject)
        if self.measures.density:
            self._density(subject)

    def _hessian_of(self, kind: str, parameters: Mapping[str, Tensor]) -> HessianOperator:
        """The Hessian, or Gauss-Newton matrix, by some parameters; operators on the same ones share it, with graphs."""
        others: dict[str, type[HessianOperator]] = {"ggn": GaussNewtonOperator, "adaptive": OutputOperator}
        wanted = others.get(kind, HessianOperator)
        names = tuple(parameters)
        if self._last is None or self._last[0] != names or type(self._last[1]) is not wanted:
            self._last = None  # before new graphs are built, the old ones go
            self._last = names, wanted(self.objective, parameters)
        return self._last[1]

    def _peer(self, hessian: HessianOperator) -> Any:
        if self.measures.engine == "lanczos":
            return None
        # Here, because PyHessian is needed only by those who ask for it.
        from tvlars_probe.curvature.pyhessian_engine import PyHessianEngine

        return PyHessianEngine(self.objective, hessian)

    def _eigenvalues(self, subject: _Subject) -> None:
        top, bottom = self.measures.top, self.measures.bottom
        if not subject.is_whole:  # a small layer may have fewer than asked for
            top = min(top, subject.hessian.size)
            bottom = min(bottom, subject.hessian.size - top)
        engine = self._by_lanczos if subject.peer is None else self._by_peer
        found = engine(subject, top, bottom)
        # The whole model's eigenvector; a view would keep the others.
        if subject.is_whole and self.measures.top and subject.peer is None:
            self.vectors[subject.kind] = found.vectors[0].clone()
        found, check = self._checked(found, subject)
        for one in found.values:
            about = {"rank": one.rank, "tol": found.tol, "converged": one.converged, "error_kind": found.criterion}
            self._add("eigenvalue", found, one.value, one.error, subject, check=check, **about)

    def _by_peer(self, subject: _Subject, top: int, _: int) -> Eigenvalues:
        m = self.measures
        if top > subject.hessian.size:
            raise UserError(f"{top} eigenvalues of an operator with {subject.hessian.size}: ask for fewer")
        self.report(subject.doing("eigenvalues by PyHessian"))
        return subject.peer.eigenvalues(top=top, tol=m.tol, seed=m.seed)  # type: ignore[no-any-return]

    def _by_lanczos(self, subject: _Subject, top: int, bottom: int) -> Eigenvalues:
        m = self.measures

        def tell(made: int, excess: float) -> None:
            error = f", error {excess:.2g} times what is allowed" if math.isfinite(excess) else ""
            self.report(f"{subject.doing('eigenvalues')}: {made:,} of at most {m.max_matvecs:,} products{error}")

        return lanczos(
            subject.operator, top=top, bottom=bottom, tol=m.tol, criterion=m.criterion, seed=m.seed,
            max_matvecs=m.max_matvecs, vectors=True, report=tell,
        )  # fmt: skip

    def _checked(self, found: Eigenvalues, subject: _Subject) -> tuple[Eigenvalues, str]:
        """The eigenvalues after the check of their products, and its outcome."""
        if not found.symmetric:
            self._note_asymmetry(found.asymmetry, subject)
            return found, doubts.ASYMMETRIC
        self.report(subject.doing("cross-check of the products"))
        found, check = cross_checked(found, subject.rebuilt, hessian=subject.hessian, loss=self.loss)
        if check == doubts.DIFFERS:
            self._note(subject, doubts.of_disagreement(subject.hessian.custom_functions, subject.title))
        return found, check

    def _trace(self, subject: _Subject) -> None:
        self.report(subject.doing("trace"))
        how: dict[str, Any] = {"num_matvecs": self.measures.trace_matvecs, "seed": self.measures.seed}
        ours = {**how, "report": self._counting(subject, "trace")}
        found: TraceEstimate = subject.peer.trace(**how) if subject.peer else hutchpp(subject.operator, **ours)
        about: dict[str, Any] = {"error_kind": "standard-error", "low": found.low, "high": found.high}
        if not found.symmetric:
            about |= {"converged": False}
        self._add(
            "trace", found, found.value, found.standard_error, subject, check=self._outcome(found, subject), **about
        )

    def _counting(self, subject: _Subject, what: str) -> Callable[[int, int], None]:
        """What says how many products an estimate has made, of how many."""
        return lambda made, total: self.report(f"{subject.doing(what)}: {made:,} of {total:,} products")

    def _density(self, subject: _Subject) -> None:
        m, tell = self.measures, self._counting(subject, "density")
        found = spectral_density(
            subject.operator, probes=m.density_probes, steps=m.density_steps, seed=m.seed, report=tell
        )
        found = dataclasses.replace(found, check=self._outcome(found, subject))
        if subject.is_whole:
            self.densities[subject.kind] = found
        else:
            self.layer_densities[subject.kind, subject.scope] = found

    def _outcome(self, found: TraceEstimate | Density, subject: _Subject) -> str | None:
        """What is known of the products of an estimate without eigenvectors: whether they are symmetric."""
        if not found.symmetric:
            self._note_asymmetry(found.asymmetry, subject)
            return doubts.ASYMMETRIC
        return doubts.of_functions(subject.hessian.custom_functions)

    def _note_asymmetry(self, share: float, subject: _Subject) -> None:
        self._note(subject, doubts.of_asymmetry(self.objective.model, share, subject.title))

    def _note(self, subject: _Subject, text: str) -> None:
        """Keep one sentence on an operator: each of its estimates would give it again."""
        self.notes.setdefault(subject.title, text)

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
                self._add(
                    "epsilon_sharpness", found, found.value, None, None, epsilon=epsilon, dimensions=found.dimensions
                )

    def batches(self, parameters: Mapping[str, Tensor]) -> None:
        """Measure the curvature along mini-batches' own gradients."""
        size = self.measures.batch_size
        assert size is not None
        try:
            found = batch_sharpness(
                self.objective,
                parameters,
                batch_size=size,
                seed=self.measures.seed,
                report=lambda made, total: self.report(f"batch sharpness: mini-batch {made + 1} of {total}"),
            )
        except NonFiniteLossError as error:
            self.notes.setdefault("batch sharpness", f"batch sharpness is unknown: {error}")
            return
        about = {"error_kind": "standard-error", "low": found.low, "high": found.high, "batch_size": size}
        about |= {"check": doubts.of_functions(found.custom_functions)}
        self._add("batch_sharpness", found, found.value, found.standard_error, "hessian", **about)

    def directional(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        """Measure the curvature along the update."""
        self.report("directional sharpness")
        hessian = self._hessian_of("hessian", parameters)
        self.left_out |= dict.fromkeys(hessian.left_out)
        found = directional_sharpness(hessian, update)
        if found.value is None:
            self.notes.setdefault("directional", "directional sharpness is unknown: the update changes no weight")
            return
        check = doubts.of_functions(hessian.custom_functions)
        self._add("directional_sharpness", found, found.value, None, "hessian", check=check)

    def critical(self, parameters: Mapping[str, Tensor], update: Update) -> None:
        """Find where along the update the loss rises."""
        found = critical_sharpness(
            self.objective,
            parameters,
            update,
            tol=self.measures.critical_tol,
            report=lambda made: self.report(f"critical sharpness: evaluation {made} of the loss"),
        )
        if found.value is None or found.low is None or found.high is None:
            self.notes.setdefault("critical", f"critical sharpness is unknown: {found.reason}")
            return
        about: dict[str, Any] = {"tol": self.measures.critical_tol, "error_kind": "bracket"}
        self._add("critical_sharpness", found, found.value, (found.high - found.low) / 2, None, **about)

    def _add(
        self,
        measure: str,
        found: Found,
        value: float,
        error: float | None,
        subject: _Subject | str | None,
        **further: Any,
    ) -> None:
        where: dict[str, Any] = {"operator": subject or "none"}
        if isinstance(subject, _Subject):
            where = {"operator": subject.kind, "scope": subject.scope, "scope_kind": subject.scope_kind}
            where |= subject.further
        dtype = next(self.objective.model.parameters()).dtype
        row = Measurement(
            measure=measure,
            value=value,
            error=error,
            matvecs=found.evaluations if isinstance(found, EpsilonSharpness | CriticalSharpness) else found.matvecs,
            seconds=found.seconds,
            samples=self.objective.samples,
            sample_id=self.sample_id,
            loss=self.loss,
            bn_mode=self.objective.bn_mode,
            seed=self.measures.seed,
            precision=str(dtype).removeprefix("torch."),
            engine=self.measures.engine,
            **where,
            **further,
        )
        self.rows.append(row)
