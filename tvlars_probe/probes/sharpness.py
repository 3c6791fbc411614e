"""The in-training probe of the Hessian, on a fixed batch at chosen steps: its top eigenvalue, and three sharpnesses.

The probe reads and never writes: a run with it is bit-identical to one without. Each measurement starts from a random
vector. The last measurement's eigenvector would be no cheaper: where another eigenvalue has meanwhile overtaken the top
one, a start from the old eigenvector leads back to the old one, and to exclude that takes as many products.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.numbers import share
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.measures import IN_TRAINING, Measures
from tvlars_probe.curvature.measuring import measure
from tvlars_probe.curvature.objective import Objective, loss_given
from tvlars_probe.curvature.updates import at_weights, copies, update_since
from tvlars_probe.errors import NonFiniteLossError, UserError, unknown
from tvlars_probe.probes.cadence import cadence
from tvlars_probe.traces.manifest import now
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from tvlars_probe.curvature.objective import Compute, Weights
    from tvlars_probe.curvature.results import Measurement
    from tvlars_probe.curvature.scaling import Rates


class SharpnessProbe:
    """Measures curvature before chosen updates, and along them. Give it to `tvlars_probe.record` as one of ``probes``.

    The operators are defined in `tvlars_probe.curvature.scaling`, `tvlars_probe.curvature.gauss_newton` and
    `tvlars_probe.curvature.adaptive`, the BatchNorm modes in `tvlars_probe.curvature.batch_norm`.

    Its measures are "eigenvalue" (the top one of each operator) and, once for the loss, "batch" (along mini-batches'
    own gradients), "directional" and "critical" (along the update of the step). The last two are measured just after
    the update, at a copy of the weights before it, and stand in the row of the step. "critical" alone takes forward
    passes only: then the model may hold DTensors, and kernels that can't be differentiated twice.

    Args:
        model: the model that is trained; wrappers are taken off.
        loss_fn: mean loss of ``model(inputs)`` and ``targets``.
        data: a pair (inputs, targets), or batches of them; under DDP each rank's own part of the sample. In several
            batches, the loss is tested at the first measurement: see `tvlars_probe.sharpness`.
        every: n, to measure before updates 0, n, 2n, ..., or "log" (each of the first ten, then ten in each decade).
        operators: among "hessian", "effective", "relative", "ggn" and "adaptive".
        measures: among "eigenvalue", "batch", "directional" and "critical".
        batch_size: samples of a mini-batch, for "batch"; give that of the run.
        bn_mode: "train", "eval" or "frozen-batch".
        budget: highest share of the run's time to spend, 0 < budget <= 1; measurements that would exceed it are left
            out. None sets no limit.
        tol: relative error of the eigenvalue.
        seed: seed of the random vector that each measurement starts from.
        sample_id: names the sample in the trace.
        compute: mean loss of a batch, in place of ``loss_fn`` (pass None) for models with another signature.
        shards: the ranks that hold the sample; by default all ranks of the process group.
        weights: what a batch counts, by default its number of samples; see `tvlars_probe.sharpness`.
        is_sum_over_samples: False for a loss that joins the samples, of all ranks where there are several, as that of
            Barlow Twins does. It takes each rank's part as one batch, and isn't tested.

    Raises:
        UserError: a setting outside its range; no loss; data of another form.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None,
        data: tuple[Tensor, ...] | Iterable[tuple[Tensor, ...]],
        *,
        every: int | str = 100,
        operators: tuple[str, ...] = ("hessian",),
        measures: tuple[str, ...] = ("eigenvalue",),
        batch_size: int | None = None,
        bn_mode: str = "train",
        budget: float | None = None,
        tol: float = 1e-3,
        seed: int = 0,
        sample_id: str | None = None,
        compute: Compute | None = None,
        shards: Ranks | None = None,
        weights: Weights | None = None,
        is_sum_over_samples: bool = True,
    ) -> None:
        budget = None if budget is None else share("budget", budget, "the run")
        self._cadence = cadence(every)
        self._before, self._after = _split(tuple(measures), tuple(operators), batch_size, tol=tol, seed=seed)
        self._weights: dict[str, Tensor] = {}
        self._model = unwrap(model)
        self._objective = Objective(
            self._model,
            loss_given(loss_fn, compute),
            data,
            bn_mode=bn_mode,
            shards=shards or Ranks.of_process_group(),
            weights=weights,
            is_sum_over_samples=is_sum_over_samples,
            takes_dtensors={*measures} == {"critical"},
        )
        if (size := batch_size or 0) > self._objective.samples and "batch" in measures:
            raise UserError(
                f"batch sharpness needs a mini-batch of {size:,} samples, and the probe's sample has "
                f"{self._objective.samples:,}: take a larger sample"
            )
        self._budget, self._sample_id = budget, sample_id
        self._began, self._spent, self._last = time.perf_counter(), 0.0, 0.0

    def due(self, step: int) -> bool:
        """Whether the state before update ``step`` is to be measured, if the budget allows."""
        return self._cadence.due(step)

    @property
    def has_budget(self) -> bool:
        """Whether the probe has a budget, and `affordable` is asked."""
        return self._budget is not None

    def affordable(self) -> bool:
        """Whether one more measurement stays within the budget, if it lasts as long as the last one.

        That is (spent + last) <= budget · (elapsed + last), in seconds; so the first measurement is always affordable.
        """
        elapsed = time.perf_counter() - self._began
        return self._budget is None or self._spent + self._last <= self._budget * (elapsed + self._last)

    def measure(self, step: int, phase: str, rates: Rates | None) -> dict[str, list[Any]]:
        """Measure the state before update ``step``.

        Args:
            step: index of the update.
            phase: name of the training phase.
            rates: the rates applied in the step before; None before a phase's first. The effective operator is left
                out where there are none, or none yet of a tensor that has just been unfrozen.

        Returns:
            rows of the table ``curvature``, as a list per column; {} where the sample's loss isn't finite.
        """
        self._last = 0.0
        if self._before is None:
            return {}
        operators = tuple(o for o in self._before.operators if o != "effective" or self._has_rates(rates))
        asked = replace(self._before, operators=operators)
        return self._columns(asked, step, phase, rates=rates)

    @property
    def follows_update(self) -> bool:
        """Whether something is measured along the update."""
        return self._after is not None

    def remember(self) -> None:
        """Copy the weights before the update."""
        self._weights = copies(self._trained())

    def forget(self) -> None:
        """Let go of the copies: the update isn't going to be measured."""
        self._weights = {}

    def measure_update(self, step: int, phase: str, lr: float) -> dict[str, list[Any]]:
        """Measure the update just made, at the weights before it.

        Args:
            step: index of the update.
            phase: name of the training phase.
            lr: learning rate of the first parameter group in it.

        Returns:
            rows of the table ``curvature``, as a list per column; {} where nothing is known of the update.
        """
        assert self._after is not None
        parameters = self._trained()
        before = {name: w for name, w in self._weights.items() if name in parameters}
        self._weights = {}
        update = update_since(before, parameters, lr)
        with at_weights(parameters, before):
            return self._columns(self._after, step, phase, update=update)

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def _columns(self, asked: Measures, step: int, phase: str, **given: Any) -> dict[str, list[Any]]:
        """Measure what is asked for, and count its time; {} where the sample's loss isn't finite."""
        began = time.perf_counter()
        try:
            found = measure(self._objective, self._trained(), asked, sample_id=self._sample_id, **given)
        except NonFiniteLossError:
            return {}  # a run that diverges has its finding, and a probe doesn't end it
        finally:  # a measurement that came to nothing has cost time, too
            seconds = time.perf_counter() - began
            self._last += seconds
            self._spent += seconds
        return curvature_columns(found.measurements, step=step, phase=phase, split="train")

    def _has_rates(self, rates: Rates | None) -> bool:
        """Whether every tensor that is trained has made a step, so that its rate is known.

        True also where no rate is finite, as with an optimizer that has no description: then the operator's own error
        says what is missing.
        """
        if rates is None:
            return False
        known = {name for name, rate in rates.rates.items() if rate.isfinite().all()}
        trained = {name for name, p in self._model.named_parameters() if p.requires_grad}
        return not known or trained <= known

    def state_dict(self) -> dict[str, Any]:
        """Return what the budget goes by: seconds since the probe was made, and those of its measurements."""
        elapsed = time.perf_counter() - self._began
        return {"elapsed": elapsed, "spent": self._spent, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        # Time between two sessions is no part of the run: the clock goes on from where it stood.
        self._began = time.perf_counter() - state.get("elapsed", 0.0)
        self._spent, self._last = state.get("spent", 0.0), state.get("last", 0.0)


def _split(
    measures: tuple[str, ...], operators: tuple[str, ...], batch_size: int | None, *, tol: float, seed: int
) -> tuple[Measures | None, Measures | None]:
    """What is measured before an update, and what after it; None for nothing."""
    for name in measures:
        if name not in IN_TRAINING:
            raise unknown("measure", name, IN_TRAINING)
    if not measures:
        raise UserError(f"a probe of nothing: give measures (allowed: {', '.join(IN_TRAINING)})")
    common: dict[str, Any] = {"tol": tol, "seed": seed, "operators": operators}
    before = after = None
    if {"eigenvalue", "batch"} & {*measures}:
        top, batch = int("eigenvalue" in measures), "batch" in measures
        before = Measures(top=top, batch_sharpness=batch, batch_size=batch_size, **common)
    if {"directional", "critical"} & {*measures}:
        directional, critical = ("directional" in measures), ("critical" in measures)
        after = Measures(top=0, directional_sharpness=directional, critical_sharpness=critical, **common)
    return before, after


def curvature_columns(
    measurements: Iterable[Measurement], *, step: int, phase: str, split: str
) -> dict[str, list[Any]]:
    """Put measurements of one state into rows of the table ``curvature``.

    Args:
        measurements: a row each.
        step: number of updates made before that state: the index of the next one.
        phase: name of the training phase.
        split: the part of the data that the sample is from: "train", "val" or "test".

    Returns:
        a list per column; {} where there are no measurements.
    """
    common = {
        "measurement_id": state_id(phase, step),
        "created_at": now(),
        "step": step,
        "phase": phase,
        "split": split,
    }
    rows = [common | asdict(m) for m in measurements]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def state_id(phase: str, step: int) -> str:
    """Return an id that is unique within the run, and the same when a resumed run repeats the measurement."""
    return hashlib.blake2b(f"{phase} {step}".encode(), digest_size=6).hexdigest()


def new_measurement_id() -> str:
    """Return a random id for the rows of one measurement: after training a state may be measured many times."""
    return uuid.uuid4().hex[:12]
