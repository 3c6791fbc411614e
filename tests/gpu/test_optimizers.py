"""Our optimizers' steps on an accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.gpu.networks import OURS
from tests.optimizers.trajectories import INDEX, followed, name_of
from tvlars_probe import TVLARS

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP, REPLAYS = 3, 6


@pytest.mark.parametrize("case", INDEX["cases"], ids=name_of)
def test_trajectories_are_the_official_ones(case: dict[str, Any], device: torch.device) -> None:
    settings = {"capturable": True} if case["optimizer"] == "tvlars" else {}
    for what, ours, official, atol in followed(case, device, foreach=True, **settings):
        np.testing.assert_allclose(ours, official, rtol=2e-5, atol=atol, err_msg=what)


def tensors(device: torch.device, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes: Sequence[tuple[int, ...]] = ((16, 8), (16,), (4, 2, 3, 3), (1,))
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]


@pytest.mark.parametrize("name", list(OURS))
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
def test_replays_of_a_captured_step_are_steps(name: str, tensor_lr: bool, cuda: torch.device) -> None:
    """Each replay takes new gradients, and φ and a rate that is a tensor go on."""
    grads = [[p.detach() for p in tensors(cuda, seed)] for seed in range(1, 1 + WARM_UP + REPLAYS)]
    plain, captured = tensors(cuda), tensors(cuda)

    def made(params: list[nn.Parameter]) -> Any:
        return OURS[name](params, **({"lr": torch.tensor(0.1, device=cuda)} if tensor_lr else {}))

    one, two = made(plain), made(captured)
    for p in captured:
        p.grad = torch.zeros_like(p)

    def give(k: int) -> None:
        for p, g in zip(captured, grads[k], strict=True):
            assert p.grad is not None
            p.grad.copy_(g)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for k in range(WARM_UP):
            give(k)
            two.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        two.step()
    for k in range(WARM_UP + REPLAYS):
        for p, g in zip(plain, grads[k], strict=True):
            p.grad = g.clone()
        one.step()
        if k >= WARM_UP:
            give(k)
            graph.replay()
        if tensor_lr and k >= WARM_UP:
            for optimizer in (one, two):
                optimizer.param_groups[0]["lr"].mul_(0.5)
    for p, q in zip(plain, captured, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    if name == "TVLARS":
        assert two.last_step.phi[0].item() == pytest.approx(one.last_step.phi[0].item(), rel=1e-12)


def test_a_capture_without_a_count_on_the_device_is_refused(cuda: torch.device) -> None:
    params = tensors(cuda)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = TVLARS(params, 0.5)
    optimizer.step()
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@pytest.mark.parametrize("name", list(OURS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_steps_in_other_types_are_those_of_the_cpu(name: str, dtype: torch.dtype, device: torch.device) -> None:
    results = []
    for place in (torch.device("cpu"), device):
        params = [nn.Parameter(p.detach().to(dtype)) for p in tensors(place)]
        optimizer = OURS[name](params, foreach=True)
        for seed in range(1, 4):
            for p, g in zip(params, tensors(place, seed), strict=True):
                p.grad = g.detach().to(dtype)
            optimizer.step()
        results.append([p.detach().cpu() for p in params])
    # One rounding of a weight, or of a moment, may fall to the other side.
    tolerance = 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-11
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
