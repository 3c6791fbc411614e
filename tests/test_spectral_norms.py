"""Spectral norms and their errors against singular values in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tests.reads import CountReads
from tvlars_probe import spectral_norms as module
from tvlars_probe.spectral_norms import SMALL, STEPS, highest_hidden, lanczos, spectral_norms, top_eigenvalues

if TYPE_CHECKING:
    from collections.abc import Callable

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed))[0]


def with_singular_values(values: Tensor, rows: int = 120, columns: int = 100) -> Tensor:
    n = len(values)
    return orthonormal(rows, n, 1) * values.double() @ orthonormal(columns, n, 2).T


def above_the_rest(gap: float) -> Tensor:
    return torch.cat([torch.tensor([1.0 + gap], dtype=torch.float64), torch.ones(99, dtype=torch.float64)])


def single(row: int, column: int) -> Tensor:
    matrix = torch.zeros(100, 80, dtype=torch.float64)
    matrix[row, column] = 2.0
    return matrix


MATRICES: dict[str, Callable[[], Tensor]] = {
    "random square": lambda: normal(150, 150),
    "random tall": lambda: normal(300, 70),
    "random wide": lambda: normal(70, 300),
    "with an outlier": lambda: normal(150, 120) + normal(150, 1) @ normal(1, 120, seed=3),
    "orthonormal": lambda: orthonormal(120, 100),
    "gap of 1e-1": lambda: with_singular_values(above_the_rest(1e-1)),
    "gap of 1e-4": lambda: with_singular_values(above_the_rest(1e-4)),
    "gap of 1e-9": lambda: with_singular_values(above_the_rest(1e-9)),
    "evenly spread": lambda: with_singular_values(torch.linspace(0, 1, 100)),
    "over eight decades": lambda: with_singular_values(torch.logspace(-8, 0, 100)),
    "of rank one": lambda: normal(100, 1) @ normal(1, 90),
    "of rank three": lambda: normal(100, 3) @ normal(3, 90),
    "of a rank just above the steps": lambda: normal(200, STEPS + 1) @ normal(STEPS + 1, 150),
    "diagonal": lambda: torch.diag(torch.linspace(0, 1, 90, dtype=torch.float64)),
    "one element": lambda: single(3, 5),
    "blocks of equal rows": lambda: normal(10, 90).repeat_interleave(10, 0),
    "zeros": lambda: torch.zeros(90, 90, dtype=torch.float64),
    "huge": lambda: normal(90, 90) * 1e200,
    "minute": lambda: normal(90, 90) * 1e-200,
    "small": lambda: normal(200, SMALL),
    "a number": lambda: normal(1, 1),
    "a row": lambda: normal(1, 300),
    "small, flat": lambda: orthonormal(50, 40),
    "small zeros": lambda: torch.zeros(5, 3, dtype=torch.float64),
    "small and huge": lambda: normal(5, 3) * 1e300,
    "without elements": lambda: torch.zeros(0, 3, dtype=torch.float64),
}


def norm(matrix: Tensor) -> float:
    # Scaled, since squares inside LAPACK may leave the range.
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    return scale * float(torch.linalg.matrix_norm(matrix / scale, ord=2)) if scale else 0.0


@pytest.mark.parametrize("make", MATRICES.values(), ids=MATRICES)
def test_the_true_norm_is_within_the_error(make: Callable[[], Tensor]) -> None:
    matrix = make()
    true = norm(matrix)
    for seed in range(5):
        # As the table holds them: float32 has a narrower range.
        value, error = spectral_norms([matrix], [seed])[:, 0].tolist()
        assert abs(true - value) <= error
        assert error <= 0.05 * true
        if min(matrix.shape) <= SMALL:
            assert error <= 2e-7 * true
        if 1e-30 < true < 1e30:
            value, error = spectral_norms([matrix], [seed])[:, 0].float().tolist()
            assert abs(true - value) <= error


def test_a_value_stands_for_the_largest_singular_value_to_many_digits() -> None:
    matrix = normal(150, 120) + normal(150, 1) @ normal(1, 120, seed=3)
    value, error = spectral_norms([matrix], [0])[:, 0].tolist()
    assert value == pytest.approx(norm(matrix), rel=1e-12)
    assert error < 1e-5 * value


def test_more_dimensions_are_flattened_from_the_second_on() -> None:
    tensors = [normal(70, 10, 3, 3), normal(70, 10, 3, 3).to(memory_format=torch.channels_last), normal(8, 4, 3, 3)]
    values, errors = spectral_norms(tensors, [0, 1, 2])
    for tensor, value, error in zip(tensors, values.tolist(), errors.tolist(), strict=True):
        assert abs(norm(tensor.reshape(len(tensor), -1)) - value) <= error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(30, 20), (90, 150)])
def test_elements_of_any_type_are_taken_as_they_are(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    real = normal(*shape)
    matrix = (torch.complex(real, normal(*shape, seed=9)) if dtype.is_complex else real).to(dtype)
    value, error = spectral_norms([matrix], [3])[:, 0].tolist()
    wide = matrix.to(torch.complex128 if dtype.is_complex else torch.float64)
    assert abs(float(torch.linalg.matrix_norm(wide, ord=2)) - value) <= error <= 0.05 * value


@pytest.mark.parametrize("shape", [(200, 90), (90, 200), (200, 40)])
def test_pieces_change_nothing(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, other = normal(*shape).float(), normal(*shape, seed=1).float()
    whole = spectral_norms([matrix, matrix], [0, 1], minus=[other, torch.zeros_like(matrix)])
    monkeypatch.setattr(module, "_WHOLE", 5000)
    monkeypatch.setattr(module, "BLOCK", 5000)
    torch.testing.assert_close(
        spectral_norms([matrix, matrix], [0, 1], minus=[other, torch.zeros_like(matrix)]), whole, rtol=1e-10, atol=0
    )
    true = norm(matrix.double() - other.double())
    assert abs(true - whole[0, 0].item()) <= whole[1, 0].item()


def test_a_difference_keeps_the_digits_that_float32_would_lose() -> None:
    before = normal(80, 90).float()
    after = before.clone()
    after[3, 4] = torch.nextafter(after[3, 4], torch.tensor(9.0))
    value, error = spectral_norms([after], [0], minus=[before])[:, 0].tolist()
    assert value == pytest.approx((after.double() - before.double()).abs().max().item(), rel=1e-12)
    assert error < 1e-6 * value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("columns", [40, 90])
def test_what_is_not_finite_has_no_norm(bad: float, columns: int) -> None:
    matrix = normal(100, columns)
    matrix[7, 8] = bad
    assert spectral_norms([matrix, normal(90, 90)], [0, 1]).isnan().tolist() == [[True, False]] * 2


@pytest.mark.parametrize("share", [1.0, 1.5, 30.0])
@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("rest", ["flat", "even", "decaying"])
def test_a_top_eigenvector_that_the_start_hardly_has_is_still_bounded(share: float, gap: float, rest: str) -> None:
    """The start has of it just what a random one is supposed to have at least: most of the time Lanczos misses it."""
    n, least = 200, 1e-7
    others = {"flat": torch.ones(n - 1), "even": torch.linspace(0, 1, n - 1), "decaying": 0.9 ** torch.arange(n - 1)}
    values = torch.cat([torch.tensor([1.0 + gap], dtype=torch.float64), others[rest].double()])
    values /= values.sum()
    start = normal(n)
    start[0] = 0.0
    start *= math.sqrt(1 - (share * least) ** 2) / start.norm()
    start[0] = share * least
    for steps in (2, 5, 12, STEPS):
        alphas, betas = lanczos(lambda v: values * v, start, steps)
        ritz = torch.linalg.eigvalsh(alphas.diag() + betas[:-1].diag(1) + betas[:-1].diag(-1))[-1:]
        highest = highest_hidden(alphas[None], betas[None], ritz, torch.tensor([least], dtype=torch.float64))
        assert ritz.item() <= values[0].item() * (1 + 1e-12)
        assert highest.item() >= values[0].item() * (1 - 1e-12)


@pytest.mark.parametrize(("steps", "gap"), [(1, 100.0), (3, 0.5)])
@pytest.mark.parametrize("chance", [0.1, 0.4])
def test_norms_lie_above_the_error_no_more_often_than_the_chance(steps: int, gap: float, chance: float) -> None:
    """A few steps on spectra whose top is easily missed, and a chance high enough to be seen."""
    matrix, true, tries = with_singular_values(above_the_rest(gap)), 1 + gap, 300
    values, errors = spectral_norms([matrix] * tries, range(tries), steps=steps, chance=chance)
    failed = (values + errors < true).double().mean().item()
    assert failed <= chance + 4 * math.sqrt(chance * (1 - chance) / tries)
    assert (values <= true * (1 + 1e-12)).all()
    if steps == 1:
        assert failed > chance / 5  # else the bound would be of nothing


def test_top_eigenvalues_are_exact_at_every_multiplicity() -> None:
    spectra = [torch.ones(SMALL), torch.tensor([3.0]), torch.tensor([2.0, 2.0 - 1e-7, 1.0]), torch.zeros(4)]
    bases = [orthonormal(len(s), len(s), seed) for seed, s in enumerate(spectra)]
    tops = top_eigenvalues([q * s.double() @ q.T for q, s in zip(bases, spectra, strict=True)])
    assert tops.tolist() == pytest.approx([s.max().item() for s in spectra], rel=4e-9)


def test_the_host_reads_nothing_and_draws_nothing_of_its_generator() -> None:
    state = torch.get_rng_state()
    matrices = [normal(90, 100), normal(20, 30), normal(70, 10, 3, 3).float()]
    with CountReads() as count:
        spectral_norms(matrices, [0, 1, 2], minus=[torch.zeros_like(m) for m in matrices], steps=3)
    assert count.reads == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_figures() -> None:
    matrix = normal(90, 100)
    figures = [spectral_norms([matrix], [seed]) for seed in (4, 4, 5)]
    assert torch.equal(figures[0], figures[1])
    assert not torch.equal(figures[0], figures[2])
