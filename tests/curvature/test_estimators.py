from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import wasserstein_distance
from torch import Tensor

from tvlars_probe.curvature.density import spectral_density
from tvlars_probe.curvature.hutchpp import hutchpp, trace_estimate
from tvlars_probe.curvature.krylov import Basis
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.operators import DenseOperator
from tvlars_probe.errors import UserError


def symmetric(size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Like a Hessian's: a few large eigenvalues, many near zero, some negative."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = torch.randn(size, generator=generator, dtype=torch.float64) * 0.05
    values[:6] = torch.tensor([10.0, 7.0, 4.0, 2.0, -1.0, -0.5])
    return ((q * values) @ q.T).to(dtype)


@pytest.mark.parametrize("basis_size", [None, 14], ids=["whole basis", "thick restart"])
def test_eigenvalues_at_both_ends_are_those_of_the_matrix(basis_size: int | None) -> None:
    matrix = symmetric(200)
    exact = torch.linalg.eigvalsh(matrix)
    found = lanczos(DenseOperator(matrix), top=3, bottom=2, tol=1e-9, basis_size=basis_size, vectors=True)
    assert [v.rank for v in found.values] == [1, 2, 3, -1, -2]
    expected = [*exact.flip(0)[:3].tolist(), *exact[:2].tolist()]
    assert [v.value for v in found.values] == pytest.approx(expected, abs=1e-8 * 10)
    assert found.converged
    for value, vector in zip(found.values, found.vectors, strict=True):
        residual = (matrix @ vector - value.value * vector).norm().item()
        assert residual == pytest.approx(value.residual, abs=1e-8)
        assert vector.norm().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_matrix_is_exhausted(seed: int) -> None:
    matrix = symmetric(8, seed)
    found = lanczos(DenseOperator(matrix), top=5, bottom=3, tol=1e-12, seed=seed)
    assert sorted(v.value for v in found.values) == pytest.approx(torch.linalg.eigvalsh(matrix).tolist(), abs=1e-12)
    assert found.matvecs == 8


def test_the_zero_matrix_and_the_identity_have_eigenvalues() -> None:
    zero = lanczos(DenseOperator(torch.zeros(6, 6)), top=2)
    assert [v.value for v in zero.values] == [0.0, 0.0]
    assert zero.converged
    for size in (6, 100, 1000):  # the larger ones aren't exhausted: each value is found by a new random vector
        one = lanczos(DenseOperator(torch.eye(size, dtype=torch.float64)), top=3)
        assert [v.value for v in one.values] == pytest.approx([1.0] * 3, abs=1e-12)
        assert one.converged


def test_the_error_in_float32_is_that_of_the_matrix() -> None:
    matrix = symmetric(400, dtype=torch.float32)
    exact = torch.linalg.eigvalsh(matrix.double()).flip(0)[:3].tolist()
    found = lanczos(DenseOperator(matrix), top=3, tol=1e-5)
    assert [v.value for v in found.values] == pytest.approx(exact, rel=1e-6)


def test_what_has_not_converged_says_so() -> None:
    found = lanczos(DenseOperator(symmetric(200)), top=3, tol=1e-12, max_matvecs=6)
    assert not found.converged
    assert found.matvecs == 6
    exact = torch.linalg.eigvalsh(symmetric(200))
    for value in found.values:  # an eigenvalue lies within the residual all the same
        assert (exact - value.value).abs().min().item() <= value.residual


def test_lanczos_is_the_same_for_a_seed_and_leaves_the_global_generator_alone() -> None:
    operator, state = DenseOperator(symmetric(100)), torch.get_rng_state()
    first, second = (lanczos(operator, top=2, seed=3).values for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("top", "bottom"), [(0, 0), (-1, 2), (8, 5)])
def test_impossible_numbers_of_eigenvalues_are_refused(top: int, bottom: int) -> None:
    with pytest.raises(UserError):
        lanczos(DenseOperator(torch.eye(10)), top=top, bottom=bottom)


def test_a_basis_stays_orthonormal_where_float32_sums_would_not() -> None:
    size = 3_000_000
    basis = Basis(DenseOperator(torch.empty(size, 0)))
    generator = torch.Generator().manual_seed(0)
    common = torch.rand(size, generator=generator)
    for _ in range(4):
        basis.add_direction(common + 0.05 * torch.randn(size, generator=generator))
    gram = np.array([[(basis[i].double() @ basis[j].double()).item() for i in range(4)] for j in range(4)])
    assert gram == pytest.approx(np.eye(4), abs=1e-6)


def test_the_trace_is_within_its_standard_error() -> None:
    matrix = symmetric(300)
    exact = matrix.trace().item()
    estimates = [hutchpp(DenseOperator(matrix), num_matvecs=60, seed=seed) for seed in range(20)]
    off = [abs(e.value - exact) / e.standard_error for e in estimates]
    assert max(off) < 4
    assert 0.5 <= sum(o < 1 for o in off) / 20 <= 0.85
    assert all(e.matvecs == 60 for e in estimates)


def test_a_trace_whose_sketch_spans_the_space_is_exact() -> None:
    matrix = symmetric(9)
    estimate = hutchpp(DenseOperator(matrix), num_matvecs=30)
    assert estimate.value == pytest.approx(matrix.trace().item(), abs=1e-12)
    assert estimate.standard_error == 0.0


def test_too_few_products_for_a_trace_are_refused() -> None:
    with pytest.raises(UserError, match="use 6 or more"):
        hutchpp(DenseOperator(torch.eye(9)), num_matvecs=5)


def test_the_density_is_that_of_the_eigenvalues() -> None:
    exact = torch.linalg.eigvalsh(symmetric(300)).numpy()
    width = np.ptp(exact)
    found = spectral_density(DenseOperator(symmetric(300)), probes=14, steps=20)
    assert (found.probes, found.matvecs) == (14, 280)
    assert found.weights.sum() == pytest.approx(1)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-6)
    assert wasserstein_distance(found.nodes, exact, found.weights) < 0.01 * width
    assert wasserstein_distance(found.grid, exact, np.maximum(found.density, 0)) < 0.01 * width
    smooth = stats.norm.pdf(found.grid[:, None], exact, found.sigma).mean(axis=1)
    assert (np.abs(found.density - smooth) <= 5 * found.standard_error + 1e-6).mean() > 0.9


def test_the_interval_of_a_mean_of_samples_is_students_widened_for_few() -> None:
    samples = [1.0, 2.0, 4.0, 4.5]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(samples), scale=stats.sem(samples))
    found = trace_estimate(10.0, samples, matvecs=4, seconds=0.0)
    assert (found.high - found.value) == pytest.approx(1.1 * (high - np.mean(samples)))
    assert (found.value - found.low) == pytest.approx(1.1 * (np.mean(samples) - low))


@pytest.mark.parametrize("num_matvecs", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_traces_lie_in_their_intervals_as_often_as_told(num_matvecs: int) -> None:
    operator, exact = DenseOperator(symmetric(100)), symmetric(100).trace().item()
    found = [hutchpp(operator, num_matvecs=num_matvecs, seed=seed) for seed in range(400)]
    inside = np.mean([f.low <= exact <= f.high for f in found])
    assert inside == pytest.approx(0.95, abs=0.035)  # three standard errors of a share of 400


@pytest.mark.parametrize("probes", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_a_density_lies_in_its_interval_as_often_as_told(probes: int) -> None:
    """At the points of its grid where there is something to see, over spectra and seeds."""
    inside = []
    for seed in range(15):
        matrix = symmetric(500, seed)
        found = spectral_density(DenseOperator(matrix), probes=probes, steps=30, points=200, seed=seed)
        gaussians = stats.norm.pdf(found.grid[:, None], torch.linalg.eigvalsh(matrix).numpy(), found.sigma)
        exact = gaussians.mean(axis=1)
        seen = exact > 1e-3 * exact.max()
        inside.append(((found.low <= exact) & (exact <= found.high))[seen].mean())
    assert np.mean(inside) == pytest.approx(0.95, abs=0.05)


def test_the_default_smoothing_is_as_wide_as_the_quadrature_resolves() -> None:
    """Few nodes can't tell a continuum from a row of peaks, more nodes can to a finer scale."""
    operator = DenseOperator(torch.diag(torch.linspace(-1, 1, 2000, dtype=torch.float64)))
    coarse, fine = (spectral_density(operator, probes=4, steps=steps) for steps in (20, 80))
    assert 0.004 < fine.sigma < coarse.sigma / 2
    # The uniform density of the diagonal, away from its ends.
    inner = np.abs(fine.grid) < 0.8
    assert ((fine.low <= 0.5) & (fine.high >= 0.5))[inner].mean() > 0.8


def test_a_density_of_one_value_is_a_peak_there() -> None:
    found = spectral_density(DenseOperator(2.0 * torch.eye(20, dtype=torch.float64)), probes=2)
    assert found.nodes == pytest.approx(np.full(20, 2.0))
    assert found.grid[found.density.argmax()] == pytest.approx(2.0, abs=2 * found.sigma)
