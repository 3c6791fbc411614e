"""What Lanczos calls converged is the value asked for, however its start lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tvlars_probe.curvature.hidden import HiddenShares
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.operators import DenseOperator, DiagonalOperator


def spectrum(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Planted so that an estimator can be led astray."""
    values = rng.standard_normal(size) * 10 ** rng.uniform(-4, -1)
    values[: rng.integers(2, 12)] = 10 ** rng.uniform(-1.5, 1)
    if kind == "a cluster at the top":
        values[:5] = 20 * (1 - 10 ** rng.uniform(-6, -1) * rng.random(5))
    if kind == "a dominant negative end":
        values[-1] = -np.abs(values).max() * 10 ** rng.uniform(0, 4)
    if kind == "a bulk with one outlier":
        values = 1 - 10 ** rng.uniform(-6, 0) * rng.random(size)
        values[0] = 1 + 10 ** rng.uniform(-2, 1)
    return values


def start_of(kind: str, rng: np.random.Generator, values: np.ndarray) -> Tensor | None:
    if kind == "random":
        return None
    start, order = np.zeros(len(values)), np.argsort(values)[::-1]
    # The eigenvector of a value that was the top one, and has been overtaken; or of any, with the bottom one's.
    start[order[rng.integers(1, 6)] if kind == "overtaken" else rng.integers(len(values))] = 1.0
    start[order[-1]] += 10 ** rng.uniform(-8, 0) if kind == "unlucky" else 0.0
    start[order[0]] = 10 ** rng.uniform(-12, -3)
    return torch.from_numpy(start)


@pytest.mark.parametrize("basis_size", [None, 12], ids=["whole basis", "thick restart"])
@pytest.mark.parametrize("start", ["random", "overtaken", "unlucky"])
@pytest.mark.parametrize(
    "kind", ["like a network's", "a cluster at the top", "a dominant negative end", "a bulk with one outlier"]
)
def test_a_value_called_converged_is_no_further_off_than_told(kind: str, start: str, basis_size: int | None) -> None:
    rng, converged = np.random.default_rng(0), 0
    for seed in range(12):
        values = spectrum(kind, rng, 400)
        found = lanczos(
            DiagonalOperator(torch.from_numpy(values)),
            start=start_of(start, rng, values),
            criterion="kato-temple" if seed % 2 else "residual",
            seed=seed,
            basis_size=basis_size,
            max_matvecs=200,
        )
        converged += found.converged
        assert not found.converged or abs(found.top - values.max()) <= found[1].error + 1e-12 * np.abs(values).max()
    assert converged >= 10


def test_the_outlier_of_a_bulk_of_a_million_is_found() -> None:
    """½|w|² + ¼(u·w)², whose Hessian is I + ½uuᵀ: a random vector is an eigenvector of it to a thousandth."""
    size = 1_000_000
    u = torch.randn(size, generator=torch.Generator().manual_seed(1)) / size**0.5

    class Bulk:
        dtype, device = torch.float32, torch.device("cpu")

        def __init__(self) -> None:
            self.size = size

        def matvec(self, v: Tensor, out: Tensor | None = None) -> Tensor:
            return torch.add(v, u * (u @ v), alpha=0.5, out=out)

    found = lanczos(Bulk())
    assert found.converged
    assert found.top == pytest.approx(1 + 0.5 * float(u.double() @ u.double()), rel=1e-5)


@pytest.mark.parametrize("restarts", [0, 3])
def test_the_share_of_an_eigenvector_in_the_start_is_bounded_as_derived(restarts: int) -> None:
    """The share is exactly ⟨u, start⟩/⟨u, q⟩, with q the next vector of the basis; after restarts their product."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 40, dtype=torch.float64, generator=generator)
    matrix = matrix + matrix.T
    u = torch.linalg.eigh(matrix).eigenvectors[:, -1].numpy()
    top = torch.linalg.eigvalsh(matrix)[-1].item()
    basis, hidden = [np.random.default_rng(0).standard_normal(40)], HiddenShares(40)
    basis[0] /= np.linalg.norm(basis[0])
    start, origin = basis[0], 0
    for restart in range(restarts + 1):
        for _ in range(6):
            left = matrix.numpy() @ basis[-1]
            for _ in range(2):
                left = left - sum(q * (q @ left) for q in basis)
            basis.append(left / np.linalg.norm(left))
        q_next, inner = basis.pop(), np.array(basis)
        values, vectors = np.linalg.eigh(inner @ matrix.numpy() @ inner.T)
        couplings = q_next @ matrix.numpy() @ inner.T @ vectors
        products = couplings * vectors[origin]
        if restart == restarts:
            break
        hidden.end_factor(values, products)
        basis, origin = [*(inner.T @ vectors).T[-3:], q_next], 3
    expected = abs(u @ start) / abs(u @ q_next)
    assert hidden.share(np.array([top]), values, products)[0] == pytest.approx(np.log(expected), abs=1e-6)


def test_what_is_not_excluded_yet_has_not_converged_and_its_error_is_a_number() -> None:
    found = lanczos(DenseOperator(torch.diag(torch.linspace(0, 1, 200, dtype=torch.float64))), max_matvecs=2)
    assert not found.converged
    assert np.isfinite(found[1].error)
