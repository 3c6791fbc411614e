from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tvlars_probe.reductions import (
    BLOCK,
    difference_norm,
    flat_views,
    inner_products,
    inner_products_of_each,
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
