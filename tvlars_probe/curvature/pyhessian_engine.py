"""Top eigenvalues and trace by the PyHessian package (Yao et al., 2020, arXiv:1912.07145): a check of our own engine.

PyHessian switches the model to evaluation mode, leaves gradients behind and draws from the global generator. Here it
gets a model whose mode it can't switch, and runs inside `Objective.held`, which puts back the rest.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tvlars_probe.curvature.krylov import norm
from tvlars_probe.curvature.results import Eigenvalue, Eigenvalues, TraceEstimate
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.curvature.operators import HessianOperator


class _Loss(nn.Module):
    """A model whose output is the loss of a batch, for PyHessian.

    It shows PyHessian the chosen parameters only. `eval` and `train` do nothing, because BatchNorm's mode is set.
    """

    def __init__(self, objective: Objective, parameters: list[Tensor]) -> None:
        super().__init__()
        self._objective, self._chosen = [objective], parameters

    def forward(self, batch: Any) -> Tensor:
        return self._objective[0].loss_of(batch)

    def parameters(self, recurse: bool = True) -> Any:
        return iter(self._chosen)

    def eval(self) -> _Loss:
        return self

    def train(self, mode: bool = True) -> _Loss:
        return self


class _Batch(tuple[Tensor, ...]):
    """A batch with the two methods that PyHessian calls on its inputs: `to` a device, and `size`, to weight batches.

    Attributes:
        weight: what the batch counts.
    """

    weight: float

    def to(self, device: Any) -> _Batch:
        return self

    def size(self, dim: int) -> float:
        return self.weight


class PyHessianEngine:
    """PyHessian's estimators on our objective and parameters.

    Args:
        objective: f; the engine is used inside ``objective.held()``.
        hessian: our operator for the same parameters; it gives the residuals, which PyHessian doesn't.

    Raises:
        UserError: the sample is spread over several ranks, which PyHessian can't do.
    """

    def __init__(self, objective: Objective, hessian: HessianOperator) -> None:
        if objective.shards.world_size > 1:
            raise UserError("--engine pyhessian runs on one rank only: use --nproc 1, or --engine lanczos")
        from pyhessian import hessian as pyhessian

        # As inputs and targets both: the "model" computes the loss from the inputs, and the "criterion" passes it on.
        batches = [(_Batch(batch), _Batch(batch)) for batch in objective.batches]
        for (inputs, _), weight in zip(batches, objective.weights, strict=True):
            inputs.weight = weight
        self._hessian, self._products = hessian, 0
        self._peer = pyhessian(
            _Loss(objective, hessian.parameters), lambda loss, _: loss, dataloader=batches, cuda=False
        )
        self._peer.device = objective.device  # its argument `cuda` knows "cuda" and "cpu" only, and no index
        inner = self._peer.dataloader_hv_product

        def counted(v: list[Tensor]) -> Any:
            self._products += 1
            return inner(v)

        self._peer.dataloader_hv_product = counted

    def eigenvalues(self, *, top: int, tol: float, seed: int) -> Eigenvalues:
        """The ``top`` eigenvalues of largest magnitude, by power iteration and deflation, with their ranks.

        PyHessian stops when an estimate's relative change is below ``tol``. `Eigenvalue.converged` says whether the
        residual is small, too.
        """
        began = time.perf_counter()
        with self._contained(seed):
            values, vectors = self._peer.eigenvalues(maxIter=100, tol=tol, top_n=top)
        pairs = [(float(value), self._residual(value, parts)) for value, parts in zip(values, vectors, strict=True)]
        # No eigenvalue of larger magnitude is missing, so the positive ones are ranks 1, 2, ... from the top of the
        # spectrum, and the negative ones ranks −1, −2, ... from the bottom.
        high = sorted((pair for pair in pairs if pair[0] >= 0), reverse=True)
        low = sorted(pair for pair in pairs if pair[0] < 0)
        ranked = [(k, *pair) for k, pair in enumerate(high, 1)] + [(-k, *pair) for k, pair in enumerate(low, 1)]
        found = [
            Eigenvalue(rank, value, residual, residual, residual <= tol * abs(value))
            for rank, value, residual in ranked
        ]
        seconds = time.perf_counter() - began
        return Eigenvalues(values=tuple(found), tol=tol, criterion="residual", matvecs=self._products, seconds=seconds)

    def _residual(self, value: float, parts: list[Tensor]) -> float:
        """‖H v − λ v‖₂ of the eigenvector v that PyHessian gives as one tensor per parameter."""
        # PyHessian's vector is an iteration or two ahead of its value, and is normalised by ‖v‖ + 1e-6. The residual
        # bounds the error all the same: it does so for any number and any unit vector.
        v = torch.cat([part.reshape(-1) for part in parts])
        v = v / norm(v)
        return norm(self._hessian.matvec(v) - value * v)

    def trace(self, *, num_matvecs: int, seed: int) -> TraceEstimate:
        """Hutchinson's estimate of the trace, by ``num_matvecs`` vectors of random signs."""
        began, before = time.perf_counter(), self._products
        # PyHessian would stop once the mean of its samples settles, which biases the mean. No change is below −∞.
        with self._contained(seed):
            samples = [float(value) for value in self._peer.trace(maxIter=num_matvecs, tol=-math.inf)]
        return TraceEstimate(
            value=statistics.fmean(samples),
            standard_error=statistics.stdev(samples) / math.sqrt(len(samples)),
            matvecs=self._products - before,
            seconds=time.perf_counter() - began,
        )

    @contextlib.contextmanager
    def _contained(self, seed: int) -> Iterator[None]:
        """Run PyHessian with its own seed and type, and with one error of torch put into words.

        PyHessian draws from the global generator and in torch's default type, so the Hessian's type is made the
        default. torch warns that backward(create_graph=True) leaves a reference cycle; `Objective.held` breaks it.

        Raises:
            UserError: the loss can't be differentiated twice with respect to these parameters.
        """
        default = torch.get_default_dtype()
        # Not by torch.manual_seed, which seeds the generators of all devices: only those of our own are put back.
        torch.default_generator.manual_seed(seed)
        if (device := self._peer.device).type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        torch.set_default_dtype(self._hessian.dtype)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*create_graph=True.*")
                yield
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise UserError(
                "PyHessian can't differentiate this loss twice with respect to these parameters: use --engine lanczos"
            ) from None
        finally:
            torch.set_default_dtype(default)
