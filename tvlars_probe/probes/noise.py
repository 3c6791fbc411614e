"""The in-training probe of the gradient's noise: signal and noise at chosen steps, on a fixed sample.

The probe reads and never writes: a run with it is bit-identical to one without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.objective import loss_given
from tvlars_probe.errors import NonFiniteLossError
from tvlars_probe.noise.cutting import check, objective_of
from tvlars_probe.noise.measuring import checked_eigenvectors, checked_settings, noise_of
from tvlars_probe.probes.cadence import cadence
from tvlars_probe.probes.sharpness import state_id
from tvlars_probe.traces.manifest import now
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from tvlars_probe.curvature.objective import Compute, Weights
    from tvlars_probe.curvature.scaling import Rates
    from tvlars_probe.noise.results import GradientNoise


class NoiseProbe:
    """Measures |G|² and tr Σ before chosen updates. Give it to `tvlars_probe.record` as one of ``probes``.

    The estimates and their errors are those of `tvlars_probe.gradient_noise`.

    Args:
        model: the model that is trained; wrappers are taken off.
        loss_fn: mean loss of ``model(inputs)`` and ``targets``.
        data: a pair (inputs, targets), or batches of them; under DDP each rank's own part of the sample. The loss is
            tested to be a mean over samples at the first measurement: see `tvlars_probe.sharpness`.
        every: n, to measure before updates 0, n, 2n, ..., or "log" (each of the first ten, then ten in each decade).
        bn_mode: "frozen-batch", "eval" or "train", which needs ``piece``.
        piece: samples of a piece; None for single samples.
        memory_budget: bytes that may be taken beyond what the process holds; None for half of what is free.
        eigenvectors: how many of the Hessian's top eigenvectors to find, for the noise's share along them.
        seed: of that search.
        sample_id: names the sample in the trace.
        compute: mean loss of a batch, in place of ``loss_fn`` (pass None) for models with another signature.
        shards: the ranks that hold the sample; by default all ranks of the process group.
        weights: what a batch counts, by default its number of samples; see `tvlars_probe.gradient_noise`.
        is_sum_over_samples: False for a loss that joins the samples of a batch; it needs ``piece``.

    Raises:
        UserError: a setting outside its range; no loss; data of another form; pieces are needed.
    """

    table = "noise"

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None,
        data: tuple[Tensor, ...] | Iterable[tuple[Tensor, ...]],
        *,
        every: int | str = 100,
        bn_mode: str = "frozen-batch",
        piece: int | None = None,
        memory_budget: int | None = None,
        eigenvectors: int | Tensor = 0,
        seed: int = 0,
        sample_id: str | None = None,
        compute: Compute | None = None,
        shards: Ranks | None = None,
        weights: Weights | None = None,
        is_sum_over_samples: bool = True,
    ) -> None:
        self._cadence, self._model = cadence(every), unwrap(model)
        self._shards = shards or Ranks.of_process_group()
        self._objective = objective_of(
            self._model,
            loss_given(loss_fn, compute),
            data,
            bn_mode=bn_mode,
            shards=self._shards,
            weights=weights,
            is_sum_over_samples=is_sum_over_samples,
        )
        piece, memory_budget, seed = checked_settings(piece, memory_budget, seed)
        check(self._objective, piece)
        self._settings = {
            "piece": piece,
            "memory_budget": memory_budget,
            "eigenvectors": checked_eigenvectors(eigenvectors),
            "seed": seed,
            "sample_id": sample_id,
        }

    def due(self, step: int) -> bool:
        """Whether the state before update ``step`` is to be measured."""
        return self._cadence.due(step)

    has_budget = False
    """Whether the probe has a budget of its own: `tvlars_probe.record` takes one for all probes."""

    def affordable(self) -> bool:
        """Whether its own budget allows one more measurement."""
        return True

    def measure(self, step: int, phase: str, rates: Rates | None) -> dict[str, list[Any]]:
        """Measure the state before update ``step``.

        Args:
            step: index of the update.
            phase: name of the training phase.
            rates: unused.

        Returns:
            rows of the table ``noise``, as a list per column; {} where the sample's loss isn't finite.
        """
        try:
            found = noise_of(
                self._objective,
                {name: p for name, p in self._model.named_parameters() if p.requires_grad},
                shards=self._shards,
                **self._settings,  # type: ignore[arg-type]
            )
        except NonFiniteLossError:
            return {}  # a run that diverges has its finding, and a probe doesn't end it
        return noise_columns(found, step=step, phase=phase, split="train", measurement_id=state_id(phase, step))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: each measurement begins anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


def noise_columns(
    found: GradientNoise, *, step: int, phase: str, split: str, measurement_id: str
) -> dict[str, list[Any]]:
    """Put the estimates of one state into rows of the table ``noise``.

    Args:
        found: the estimates.
        step: number of updates made before that state: the index of the next one.
        phase: name of the training phase.
        split: the part of the data that the sample is from: "train", "val" or "test".
        measurement_id: of all rows.

    Returns:
        a list per column.
    """
    common = {
        "measurement_id": measurement_id,
        "created_at": now(),
        "step": step,
        "phase": phase,
        "split": split,
    }
    rows = [common | row for row in found.rows()]
    return {name: [row[name] for row in rows] for name in rows[0]}
