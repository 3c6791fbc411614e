from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.reads import CountReads
from tvlars_probe import reductions
from tvlars_probe.reductions import (
    BLOCK,
    difference_norm,
    flat_views,
    inner_products,
    inner_products_of_each,
    multi_tensor_dots,
    multi_tensor_norms,
    norm_of_square,
    squared_norm,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numel", [0, 1, 1000, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_inner_products_are_float64s(dtype: torch.dtype, numel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(numel, generator=generator).to(dtype) for _ in range(3)]
    exact = [v.double().numpy() for v in vectors]
    pairs = [(0, 0), (1, 2), (0, 2)]
    for value, (i, j) in zip(inner_products(vectors, pairs), pairs, strict=True):
        bound = np.linalg.norm(exact[i]) * np.linalg.norm(exact[j])
        assert abs(value - float(exact[i] @ exact[j])) <= 1e-6 * bound


def test_non_finite_values_are_kept() -> None:
    assert inner_products((torch.tensor([1.0, float("inf")]),), ((0, 0),)) == [float("inf")]
    assert np.isnan(inner_products((torch.tensor([1.0, float("nan")]),), ((0, 0),))[0])


def test_tiny_and_huge_values_neither_vanish_nor_overflow() -> None:
    for scale in (1e-30, 1e30):
        assert squared_norm(torch.full((100,), scale)) == pytest.approx(100 * scale**2, rel=1e-6)


def test_flat_views_list_elements_in_one_order() -> None:
    plain = torch.arange(24.0).reshape(2, 3, 2, 2)
    last = plain.contiguous(memory_format=torch.channels_last)
    for pair in ((plain, plain), (last, last), (plain, last), (plain[..., 0], plain[..., 1])):
        a, b = flat_views(*pair)
        assert torch.dot(a, b).item() == (pair[0] * pair[1]).sum().item()
    (view,) = flat_views(last)
    assert view.data_ptr() == last.data_ptr()


def test_difference_norm() -> None:
    a, b = torch.randn(2, BLOCK + 3, generator=torch.Generator().manual_seed(0))
    assert difference_norm(a, b) == pytest.approx((a.double() - b.double()).norm().item(), rel=1e-6)


@pytest.mark.parametrize("size", [10, 1030, 150_007])
def test_the_bits_do_not_depend_on_where_the_tensors_lie(size: int) -> None:
    """Gradients under DDP are views of buckets, which lie elsewhere when a run is resumed."""
    torch.manual_seed(0)
    a, b = torch.randn(size), torch.randn(size)
    found = set()
    for offset in range(16):
        moved = [torch.empty(size + 16)[offset : offset + size].copy_(v) for v in (a, b)]
        found.add(tuple(inner_products(moved, ((0, 0), (1, 1), (0, 1)))))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_small_and_large_tensors_together_are_what_each_is_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = [3, 0, 2048, 1, 5000, 64, 200_000, 2049]
    tuples = [(torch.randn(size).to(dtype), (torch.randn(size) * 1e-3).to(dtype)) for size in sizes]
    pairs = ((0, 0), (1, 1), (0, 1))
    for (w, g), (ww, gg, wg) in zip(tuples, inner_products_of_each(tuples, pairs), strict=True):
        w, g = w.double(), g.double()
        assert ww == pytest.approx((w @ w).item(), rel=1e-6)
        assert gg == pytest.approx((g @ g).item(), rel=1e-6)
        assert wg == pytest.approx((w @ g).item(), abs=1e-6 * (ww * gg) ** 0.5)


def test_small_tensors_of_extreme_or_no_finite_values_and_of_two_types() -> None:
    values = [1e-30, 1e30, math.inf, math.nan, 0.0]
    tuples = [(torch.full((4,), value), torch.ones(4)) for value in values]
    found = [square for square, _ in inner_products_of_each(tuples, ((0, 0), (1, 1)))]
    assert found[:2] == pytest.approx([4e-60, 4e60])
    assert (found[2], math.isnan(found[3]), found[4]) == (math.inf, True, 0.0)
    mixed = [(torch.ones(2), torch.ones(2)), (torch.ones(3).double(), torch.ones(3).double())]
    assert [tuple(products) for products in inner_products_of_each(mixed, ((0, 1),))] == [(2.0,), (3.0,)]


@pytest.mark.parametrize("size", [100, 200_000])
def test_tensors_of_two_types_are_measured_in_the_wider_one(size: int) -> None:
    torch.manual_seed(0)
    w = torch.randn(size)
    for g, rel in ((torch.randn(size).bfloat16(), 1e-6), (torch.randn(size).double(), 1e-6)):
        ww, gg, wg = next(inner_products_of_each([(w, g)], ((0, 0), (1, 1), (0, 1))))
        assert (ww, gg) == pytest.approx((w.double().square().sum().item(), g.double().square().sum().item()), rel=rel)
        assert wg == pytest.approx((w.double() @ g.double()).item(), abs=rel * (ww * gg) ** 0.5)


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, -0.00388), (torch.float16, -0.00048)])
def test_a_difference_of_half_precision_is_not_rounded_to_it(dtype: torch.dtype, near: float) -> None:
    a, b = torch.full((5000,), 1.0).to(dtype), torch.full((5000,), near).to(dtype)
    assert difference_norm(a, b) == pytest.approx((a.double() - b.double()).norm().item(), rel=1e-6)


EXTREME = [
    (torch.float16, 300.0), (torch.float16, 6e4), (torch.float16, 1e-5), (torch.bfloat16, 1e30),
    (torch.bfloat16, 1e-30), (torch.float32, 1e20), (torch.float32, 3e38), (torch.float32, 1e-30),
    (torch.float32, 1e-42), (torch.float64, 1e40), (torch.float64, 1e200), (torch.float64, 1e300),
    (torch.float64, 1e-200), (torch.float64, 1e-310),
]  # fmt: skip
"""Types, and elements whose squares they don't hold."""


def of_size(value: float, dtype: torch.dtype, size: int = 4500) -> torch.Tensor:
    """Elements of up to that value, of both signs, some of them much smaller or zero."""
    shares = torch.linspace(-1, 1, size, dtype=torch.float64)
    shares[::7] *= 1e-6
    shares[::50] = 0.0
    return (shares * value).to(dtype)


@pytest.mark.parametrize(("dtype", "value"), EXTREME, ids=str)
@pytest.mark.parametrize("size", [7, 4500])
def test_no_norm_leaves_the_range_where_its_squares_do(dtype: torch.dtype, value: float, size: int) -> None:
    """hypot scales its arguments, so that it neither over- nor underflows."""
    v = of_size(value, dtype, size)
    exact = pytest.approx(math.hypot(*v.double().tolist()), rel=1e-6)
    assert norm_of_square(squared_norm(v), v) == exact
    assert [norm_of_square(square, v) for (square,) in inner_products_of_each([(v,), (v,)], ((0, 0),))] == [exact] * 2
    assert multi_tensor_norms([v, v]).tolist() == [exact] * 2
    assert difference_norm(v, torch.zeros_like(v)) == exact


@pytest.mark.parametrize(("dtype", "value"), EXTREME, ids=str)
def test_no_inner_product_does_where_float64_holds_it(dtype: torch.dtype, value: float) -> None:
    v, w = of_size(value, dtype), of_size(min(value, 1e100), dtype)
    exact = math.fsum(a * b for a, b in zip(v.tolist(), w.tolist(), strict=True))
    if exact:
        assert inner_products((v, w), ((0, 1),)) == [pytest.approx(exact, rel=1e-6)]
        assert multi_tensor_dots([v], [w]).tolist() == [pytest.approx(exact, rel=1e-6)]


def test_a_product_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reductions, "_PIECE", 100)
    a, b = torch.randn(2, 3, 5, 7, 11, generator=torch.Generator().manual_seed(0))
    exact = (a.double() * b.double()).sum().item()
    unlike = b.transpose(0, 1).contiguous().transpose(0, 1)  # of another layout
    assert multi_tensor_dots([a, a], [b, unlike]).tolist() == pytest.approx([exact] * 2, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_what_is_zero_or_not_finite_stays_so(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        v = torch.tensor([value, 1e-300 if value else 0.0], dtype=dtype)
        for norm in (norm_of_square(squared_norm(v), v), multi_tensor_norms([v]).item()):
            assert norm == pytest.approx(value, nan_ok=True)
        empty = torch.empty(0, dtype=dtype)
        assert norm_of_square(0.0, empty) == multi_tensor_norms([empty]).item() == 0.0


def test_finite_elements_have_a_finite_norm_although_no_float64_holds_it() -> None:
    v = torch.full((9,), 1.5e308, dtype=torch.float64)
    assert norm_of_square(math.inf, v) == multi_tensor_norms([v]).item() == torch.finfo(torch.float64).max


@pytest.mark.parametrize("exponent", [-90, -20, 0, 20, 90])
def test_norms_of_the_ordinary_range_keep_their_bits(exponent: int) -> None:
    v = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10.0**exponent
    assert multi_tensor_norms([v]).item() == torch._foreach_norm([v], 2)[0].item()
    assert norm_of_square(squared_norm(v), v) == math.sqrt(squared_norm(v))


@pytest.mark.parametrize("value", [1e-40, 1e-20, 1.0, 1e20, 3e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_devices_without_float64_hold_the_norms_that_float32_holds(
    dtype: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reductions, "accumulation_dtype", lambda device: torch.float32)
    v = of_size(value, dtype, 70)
    found = multi_tensor_norms([v])
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(math.hypot(*v.tolist()), rel=1e-5)


def test_the_host_waits_for_no_norm_and_no_product() -> None:
    tensors = [torch.randn(50, dtype=dtype) for dtype in (torch.float16, torch.float32, torch.float64)]
    with CountReads() as count:
        multi_tensor_norms(tensors)
        multi_tensor_dots(tensors, tensors)
    assert count.reads == 0
