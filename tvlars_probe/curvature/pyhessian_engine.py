"""Top eigenvalues and trace by the PyHessian package (Yao et al., 2020, arXiv:1912.07145): a check of our own engine.

PyHessian switches the model to evaluation mode, leaves gradients behind and draws from the global generator. Here it
gets a model whose mode it can't switch, and runs inside `Objective.held`, which puts back the rest.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tvlars_probe.curvature.hutchpp import trace_estimate
from tvlars_probe.curvature.krylov import is_symmetric, norm, products, random_vector
from tvlars_probe.curvature.results import Eigenvalue, Eigenvalues
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.curvature.objective import Objective
    from tvlars_probe.curvature.operators import HessianOperator
    from tvlars_probe.curvature.results import TraceEstimate


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


class _Pair(NamedTuple):
    """An eigenvalue, its residual, its unit vector v, and H v."""

    value: float
    residual: float
    vector: Tensor
    product: Tensor


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
        pairs = [self._residual(float(value), parts) for value, parts in zip(values, vectors, strict=True)]
        # No eigenvalue of larger magnitude is missing, so the positive ones are ranks 1, 2, ... from the top of the
        # spectrum, and the negative ones ranks −1, −2, ... from the bottom.
        high = sorted((pair for pair in pairs if pair.value >= 0), key=lambda pair: -pair.value)
        low = sorted((pair for pair in pairs if pair.value < 0), key=lambda pair: pair.value)
        ranked = [*enumerate(high, 1), *((-k, pair) for k, pair in enumerate(low, 1))]
        ordered, asymmetry = [pair for _, pair in ranked], self._asymmetry
        symmetric = is_symmetric(asymmetry, 1.0, self._hessian.dtype)
        found = [
            Eigenvalue(
                rank, pair.value, pair.residual, pair.residual, symmetric and pair.residual <= tol * abs(pair.value)
            )
            for rank, pair in ranked
        ]
        return Eigenvalues(
            values=tuple(found), tol=tol, criterion="residual", matvecs=self._products,
            seconds=time.perf_counter() - began, symmetric=symmetric, asymmetry=asymmetry,
            vectors=torch.stack([pair.vector for pair in ordered]),
            combined=self._combined(ordered),
        )  # fmt: skip

    def _combined(self, pairs: list[_Pair]) -> tuple[Tensor, Tensor]:
        """w and H w, with w the sum of the eigenvectors and √n times a random unit vector."""
        v, product = self._random
        size = math.sqrt(len(v))
        w, of_w = size * v, size * product
        for pair in pairs:
            w += pair.vector
            of_w += pair.product
        return w, of_w

    def _residual(self, value: float, parts: list[Tensor]) -> _Pair:
        """‖H v − λ v‖₂ of the eigenvector v that PyHessian gives as one tensor per parameter."""
        # PyHessian's vector is an iteration or two ahead of its value, and is normalised by ‖v‖ + 1e-6. The residual
        # bounds the error all the same: it does so for any number and any unit vector.
        v = torch.cat([part.reshape(-1) for part in parts])
        v = v / norm(v)
        product = self._hessian.matvec(v)
        return _Pair(value, norm(product - value * v), v, product)

    @cached_property
    def _asymmetry(self) -> float:
        """|⟨v, H u⟩ − ⟨H v, u⟩|/‖H v‖ for a random v and u = H v/‖H v‖, by a product of ours more."""
        v, product = self._random
        size = norm(product)
        if not size:
            return 0.0
        back = products(v[None], self._hessian.matvec(product / size)).item()
        return abs(back - size) / size

    @cached_property
    def _random(self) -> tuple[Tensor, Tensor]:
        """A random unit vector v, and H v by our product."""
        v = random_vector(self._hessian, torch.Generator().manual_seed(0))
        v /= norm(v)
        return v, self._hessian.matvec(v)

    def trace(self, *, num_matvecs: int, seed: int) -> TraceEstimate:
        """Hutchinson's estimate of the trace, by ``num_matvecs`` vectors of random signs."""
        began, before = time.perf_counter(), self._products
        # PyHessian would stop once the mean of its samples settles, which biases the mean. No change is below −∞.
        with self._contained(seed):
            samples = [float(value) for value in self._peer.trace(maxIter=num_matvecs, tol=-math.inf)]
        return trace_estimate(
            0.0,
            samples,
            matvecs=self._products - before,
            seconds=time.perf_counter() - began,
            symmetric=is_symmetric(self._asymmetry, 1.0, self._hessian.dtype),
            asymmetry=self._asymmetry,
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
