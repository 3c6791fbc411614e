"""Signal and noise that are known: told intervals of 95 % hold them in 95 ± 3 % of 1,000 draws, tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe

if TYPE_CHECKING:
    from collections.abc import Callable

    Case = tuple[Callable[[], tuple[Tensor, Tensor]], nn.Module, dict[str, tuple[float, float]]]

DRAWS, SAMPLES = 1000, 512


def held(draw: Callable[[], tuple[Tensor, Tensor]], model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor],
         truth: dict[str, tuple[float, float]], draws: int = DRAWS) -> dict[tuple[str, str], float]:  # fmt: skip
    """The percentage of draws whose intervals hold |G|², tr Σ and B_simple of each scope."""
    quantile, counts = student.ppf(0.975, SAMPLES - 1), dict.fromkeys([(s, k) for s in truth for k in "GSB"], 0.0)
    for _ in range(draws):
        found = tvlars_probe.gradient_noise(model, loss, draw())
        by_scope = {e.scope: e for e in found.estimates if e.scope_kind != "layer"}
        for scope, (square, trace) in truth.items():
            e, batch = by_scope[scope], by_scope[scope].simple_batch()
            assert e.gradient_square_error is not None
            assert e.noise_trace_error is not None
            counts[scope, "G"] += abs(e.gradient_square - square) <= quantile * e.gradient_square_error
            counts[scope, "S"] += abs(e.noise_trace - trace) <= quantile * e.noise_trace_error
            counts[scope, "B"] += batch.low <= trace / square <= batch.high
    return {key: 100 * count / draws for key, count in counts.items()}


def regression() -> Case:
    """y = x·w* + b* + ε with x ~ N(0, I): of the squared error g_w = 2·x·r and g_b = 2·r, r = x·δ + β − ε.

    So G = 2(δ, β), tr Σ_w = 4((d + 1)|δ|² + d(β² + σ²)) and Σ_b = 4(|δ|² + σ²).
    """
    torch.manual_seed(0)
    size, sigma, beta = 10, 0.8, 0.5
    model = nn.Linear(size, 1).double()
    delta = 0.25 * torch.ones(1, size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randn(SAMPLES, size, dtype=torch.float64, generator=generator)
        noise = sigma * torch.randn(SAMPLES, 1, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            return x, model(x) - x @ delta.T - beta + noise

    square = delta.square().sum().item()
    weight = 4 * square, 4 * ((size + 1) * square + size * (beta**2 + sigma**2))
    bias = 4 * beta**2, 4 * (square + sigma**2)
    both = weight[0] + bias[0], weight[1] + bias[1]
    return draw, model, {"weight": weight, "bias": bias, "all": both}


class Point(nn.Module):
    """Its output is its weights, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Parameter(torch.full((30,), 0.2)), nn.Parameter(torch.full((200,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.near, self.far]).expand(len(x), -1)


def quadratic() -> Case:
    """½|w|² − ⟨w, x⟩ with planted noise x of a known covariance: g = w − x."""
    model = Point().double()
    scale = torch.cat([torch.linspace(0.5, 1.5, 30), torch.linspace(1.0, 0.1, 200)]).double()
    generator = torch.Generator().manual_seed(2)

    def draw() -> tuple[Tensor, Tensor]:
        x = scale * torch.randn(SAMPLES, 230, dtype=torch.float64, generator=generator)
        return x, x

    w = torch.cat([model.near, model.far]).detach()
    parts = {"near": slice(0, 30), "far": slice(30, 230), "all": slice(0, 230)}
    return draw, model, {k: (w[s].square().sum().item(), scale[s].square().sum().item()) for k, s in parts.items()}


def half_square(w: Tensor, x: Tensor) -> Tensor:
    return (0.5 * w.square() - w * x).sum(1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("case", [regression, quadratic])
def test_intervals_hold_what_is_known(case: Callable[[], Case]) -> None:
    draw, model, truth = case()
    found = held(draw, model, F.mse_loss if case is regression else half_square, truth)
    assert all(92 <= share <= 98 for share in found.values()), found


@pytest.mark.parametrize("case", [regression, quadratic])
def test_estimates_come_near_to_what_is_known(case: Callable[[], Case]) -> None:
    """One draw of many samples."""
    draw, model, truth = case()
    parts = [draw() for _ in range(10)]
    data = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    found = tvlars_probe.gradient_noise(model, F.mse_loss if case is regression else half_square, data)
    for scope, (square, trace) in truth.items():
        e = next(e for e in found.estimates if e.scope == scope and e.scope_kind != "layer")
        assert e.gradient_square_error is not None
        assert abs(e.gradient_square - square) < 4 * e.gradient_square_error < square
        assert e.noise_trace == pytest.approx(trace, rel=0.1)
