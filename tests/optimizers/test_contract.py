"""The `torch.optim.Optimizer` contract, over all our optimizers and both ways through a step."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.reads import CountReads
from tvlars_probe import LAMB, LARS, TVLARS, describe
from tvlars_probe.optimizers.layerwise import LayerwiseOptimizer
from tvlars_probe.optimizers.registry import OPTIMIZERS

OURS = {name: entry.load() for name, entry in OPTIMIZERS.items() if entry.path.startswith("tvlars_probe.")}
MAKERS: dict[str, Any] = {
    **{
        name: lambda params, kind=kind, name=name, **kw: kind(params, **{"lr": OPTIMIZERS[name].default_lr / 5, **kw})
        for name, kind in OURS.items()
    },
    "lars-no-momentum": lambda params, **kw: LARS(params, **{"lr": 1.0, "momentum": 0.0, **kw}),
    "lars-filtered": lambda params, **kw: LARS(
        params, **{"lr": 1.0, "weight_decay_filter": True, "lars_adaptation_filter": True, **kw}
    ),
    "tvlars-fast": lambda params, **kw: TVLARS(params, **{"lr": 1.0, "lmbda": 0.01, **kw}),
    "lamb-decayed": lambda params, **kw: LAMB(params, **{"lr": 0.01, "weight_decay": 0.01, **kw}),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]


@pytest.fixture(params=[False, True], ids=["host", "device"])
def foreach(request: pytest.FixtureRequest) -> bool:
    flag: bool = request.param
    return flag


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3, 3, 3), (4,), (5, 8), (5,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def give_grads(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_grads(params, 100 + step)
        optimizer.step()


def test_both_ways_through_a_step_agree(make: Any) -> None:
    one, other = tensors(), tensors()
    on_host, on_device = make(one, foreach=False), make(other, foreach=True)
    run(on_host, one, range(10))
    run(on_device, other, range(10))
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    for column in ("weight_norm", "grad_norm", "weight_grad_dot", "direction_norm", "trust_ratio", "phi", "adam_norm"):
        a, b = getattr(on_host.last_step, column), getattr(on_device.last_step, column)
        torch.testing.assert_close(a, b.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_device_path_never_reads_a_scalar(make: Any, dtype: torch.dtype) -> None:
    params = tensors(dtype=dtype)
    optimizer = make(params, foreach=True)
    run(optimizer, params, range(2))
    give_grads(params, 5)
    with CountReads() as count:
        torch.ones(1).item()
        assert count.reads == 1
        optimizer.step()
    assert count.reads == 1


def test_the_device_path_takes_a_learning_rate_that_stays_on_the_device(make: Any) -> None:
    one, other = tensors(), tensors()
    run(make(one, foreach=True, lr=torch.tensor(0.5)), one, range(3))
    run(make(other, foreach=True, lr=0.5), other, range(3))
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q)


def test_a_closure_is_called_with_gradients_and_its_loss_returned(make: Any, foreach: bool) -> None:
    params = tensors()
    optimizer = make(params, foreach=foreach)
    before = [p.detach().clone() for p in params]

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = torch.stack([(p**2).sum() for p in params]).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(sum((b**2).sum().item() for b in before), rel=1e-5)
    assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_groups_have_their_own_settings(make: Any, foreach: bool) -> None:
    together, apart = tensors(), tensors()
    settings: list[dict[str, Any]] = [{"lr": 0.3, "weight_decay": 0.1}, {"lr": 0.7, "weight_decay": 0.0}]
    whole = make([{"params": together[:2], **settings[0]}, {"params": together[2:], **settings[1]}], foreach=foreach)
    halves = [make(apart[:2], foreach=foreach, **settings[0]), make(apart[2:], foreach=foreach, **settings[1])]
    for step in range(4):
        give_grads(together, step)
        give_grads(apart, step)
        whole.step()
        for half in halves:
            half.step()
    for p, q in zip(together, apart, strict=True):
        assert torch.equal(p, q)


def test_a_saved_state_continues_to_the_same_bits(make: Any, foreach: bool) -> None:
    params = tensors()
    optimizer = make(params, foreach=foreach)
    run(optimizer, params, range(5))
    stream = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    copies = [nn.Parameter(p.clone()) for p in saved["params"]]
    other = make(copies, foreach=foreach, lr=123.0)
    other.load_state_dict(saved["optimizer"])
    run(optimizer, params, range(5, 9))
    run(other, copies, range(5, 9))
    for p, q in zip(params, copies, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copied_optimizer_works(make: Any, clone: Any) -> None:
    params = tensors()
    optimizer = make(params)
    run(optimizer, params, range(2))
    other = clone(optimizer)
    others = [p for group in other.param_groups for p in group["params"]]
    run(optimizer, params, range(2, 4))
    run(other, others, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_a_group_can_be_added_later(make: Any, foreach: bool) -> None:
    params = tensors()
    optimizer = make(params[:2], foreach=foreach)
    run(optimizer, params, range(3))
    before = params[2].detach().clone()
    optimizer.add_param_group({"params": params[2:], "lr": 0.25})
    assert optimizer.param_groups[1]["lr"] == 0.25
    run(optimizer, params, range(3, 4))
    assert not torch.equal(params[2], before)
    assert len(optimizer.last_step.weight_norm) == len(params)


def test_a_group_with_invalid_settings_is_not_added(make: Any) -> None:
    params = tensors()
    optimizer = make(params[:2])
    with pytest.raises(ValueError, match=r"invalid lr: -1.0 \(allowed: 0 <= lr < inf\)"):
        optimizer.add_param_group({"params": params[2:], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_parameters_without_gradient_are_skipped(make: Any, foreach: bool) -> None:
    params = tensors()
    optimizer = make(params, foreach=foreach)
    give_grads(params, 0)
    params[1].grad = None
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state
    last = optimizer.last_step
    assert last.has_grad == (True, False, True, True, True)
    assert math.isnan(last.weight_norm[1])
    assert not last.weight_norm[[0, 2, 3, 4]].isnan().any()


def test_a_step_without_any_gradient_changes_nothing(make: Any, foreach: bool) -> None:
    params = tensors()
    optimizer = make(params, foreach=foreach)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert not any(optimizer.last_step.has_grad)


def test_sparse_gradients_are_refused_by_name(make: Any) -> None:
    embedding = nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients \(group 0, parameter 0\)"):
        make(embedding.parameters()).step()
    with pytest.raises(RuntimeError, match=r"sparse gradients \(weight\)"):
        make(embedding.named_parameters()).step()


def test_complex_parameters_are_refused_by_name(make: Any) -> None:
    p = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="complex parameters"):
        make([p]).step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)], ids=str)
def test_other_precisions_follow_float64(make: Any, foreach: bool, dtype: torch.dtype, tolerance: float) -> None:
    params = tensors(dtype=dtype)
    exact = [nn.Parameter(p.detach().double()) for p in params]
    optimizer, reference = make(params, foreach=foreach), make(exact, foreach=not foreach)
    for step in range(5):
        give_grads(params, step)
        for p, e in zip(params, exact, strict=True):
            assert p.grad is not None
            e.grad = p.grad.double()
        optimizer.step()
        reference.step()
    for p, e in zip(params, exact, strict=True):
        assert p.dtype == dtype
        assert (p.double() - e).norm() <= tolerance * e.norm()
        assert all(s.dtype == dtype for s in optimizer.state[p].values())


def test_memory_layouts_make_no_difference(make: Any, foreach: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 6, 3, 3, generator=generator)
    grads = [torch.randn(4, 6, 3, 3, generator=generator) for _ in range(4)]
    plain = nn.Parameter(start.clone())
    last = nn.Parameter(start.clone(memory_format=torch.channels_last))
    sliced = nn.Parameter(torch.zeros(4, 6, 3, 6)[..., ::2].copy_(start))
    optimizers = [make([p], foreach=foreach) for p in (plain, last, sliced)]
    for step, g in enumerate(grads):
        plain.grad = g.clone()
        last.grad = g.clone(memory_format=torch.channels_last if step % 2 else torch.contiguous_format)
        sliced.grad = g.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(last, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sliced, plain, rtol=1e-5, atol=1e-6)


def test_a_change_of_memory_layout_takes_the_state_along(make: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    start, g = (torch.randn(4, 6, 3, 3, generator=generator) for _ in range(2))
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    for p, changes in ((one, False), (other, True)):
        optimizer = make([p])
        for step in range(4):
            if changes and step == 2:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
            p.grad = (g * (step + 1)).clone()
            optimizer.step()
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "constant", "cancelling", "decay multiple"])
@pytest.mark.parametrize("numel", [2_400_000, 7])
def test_norms_and_products_are_accurate(make: Any, foreach: bool, numel: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(numel, generator=generator).reshape(-1, 1) * 0.05 + 0.01
    noise = torch.randn(numel, generator=generator).reshape(-1, 1)
    decay = 5e-4
    if kind == "constant":
        w = torch.full_like(w, 0.1234567)
    g = {
        "random": noise,
        "constant": torch.full_like(w, 0.0765432),
        "cancelling": -decay * w + 1e-8 * noise,
        "decay multiple": -decay * (1 - 1e-4) * w,
    }[kind]
    p = nn.Parameter(w.clone())
    p.grad = g.clone()
    optimizer = make([p], foreach=foreach, weight_decay=decay)
    optimizer.step()
    last: Any = optimizer.last_step
    x, y = w.double().numpy(), g.double().numpy()
    wn, gn = np.linalg.norm(x), np.linalg.norm(y)
    assert last.weight_norm.item() == pytest.approx(wn, rel=5e-6)
    assert last.grad_norm.item() == pytest.approx(gn, rel=5e-6)
    assert abs(last.weight_grad_dot.item() - float((x * y).sum())) <= 5e-6 * wn * gn
    if isinstance(optimizer, LAMB):
        # In the first step r = (1 − β₁)·g / (√(1 − β₂)·|g| + eps), or (1 − β₁²)·g above it looking a step ahead.
        share = 0.19 if describe(optimizer)[0].momentum.lookahead else 0.1
        r = share * y / (np.sqrt(0.001) * np.abs(y) + 1e-6)
        assert last.adam_norm.item() == pytest.approx(np.linalg.norm(r), rel=1e-5)
        assert last.direction_norm.item() == pytest.approx(np.linalg.norm(r + decay * x), rel=1e-5)
    else:
        direction = np.linalg.norm(y + decay * x)
        factor = optimizer.phi_of(optimizer.param_groups[0]) if isinstance(optimizer, TVLARS) else 1.0
        cap = 10.0 if isinstance(optimizer, TVLARS) else np.inf
        assert last.direction_norm.item() == pytest.approx(direction, rel=5e-6)
        ratio = 0.001 * factor * min(wn, cap) / min(direction, cap)
        assert last.trust_ratio.item() == pytest.approx(ratio, rel=5e-6)


def test_norms_beyond_the_square_roots_of_float32_are_seen(make: Any, foreach: bool) -> None:
    for scale in (1e-25, 1e25):
        p = nn.Parameter(torch.full((10, 10), scale))
        p.grad = torch.full((10, 10), scale)
        optimizer = make([p], foreach=foreach, weight_decay=0.0, lr=0.0)
        optimizer.step()
        assert optimizer.last_step.weight_norm.item() == pytest.approx(10 * scale, rel=1e-5)
        assert optimizer.last_step.grad_norm.item() == pytest.approx(10 * scale, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, r"invalid lr: -0.1 \(allowed: 0 <= lr < inf\)"),
        ({"lr": float("nan")}, "invalid lr"),
        ({"lr": torch.ones(2)}, "a tensor of shape"),
        ({"weight_decay": -1.0}, r"invalid weight_decay: -1.0 \(allowed: 0 <= weight_decay < inf\)"),
    ],
    ids=["lr", "nan", "tensor", "decay"],
)
def test_invalid_settings_are_refused_with_their_range(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tensors(), **settings)


def test_schedulers_and_gradient_scalers_work(make: Any) -> None:
    params = tensors()
    optimizer = make(params)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    first = optimizer.param_groups[0]["lr"]
    loss = torch.stack([(p**2).sum() for p in params]).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()
    # The gradient of Σp² is 2p: seen unscaled.
    torch.testing.assert_close(optimizer.last_step.grad_norm, 2 * optimizer.last_step.weight_norm, rtol=1e-5, atol=0.0)
    assert optimizer.param_groups[0]["lr"] == first / 2


def test_the_step_leaves_gradients_alone(make: Any, foreach: bool) -> None:
    params = tensors()
    optimizer = make(params, foreach=foreach)
    give_grads(params, 0)
    before = [p.grad.clone() for p in params if p.grad is not None]
    optimizer.step()
    assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True) if p.grad is not None)


def test_empty_tensors_do_no_harm(make: Any, foreach: bool) -> None:
    p = nn.Parameter(torch.zeros(0, 3))
    p.grad = torch.zeros(0, 3)
    optimizer = make([p], foreach=foreach)
    optimizer.step()
    assert optimizer.last_step.weight_norm.tolist() == [0.0]


def test_each_is_a_layerwise_optimizer(make: Any) -> None:
    assert isinstance(make(tensors()), LayerwiseOptimizer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, True])
def test_lamb_in_half_precision_is_lamb_in_single(dtype: torch.dtype, foreach: bool | None) -> None:
    torch.manual_seed(0)
    w, g = torch.randn(256, 128), torch.randn(256, 128) * 0.01
    found = {}
    for kind in (torch.float32, dtype):
        p = nn.Parameter(w.to(kind))
        p.grad = g.to(kind)
        optimizer = LAMB([p], lr=0.01, foreach=foreach)
        optimizer.step()
        assert optimizer.last_step is not None
        found[kind] = [optimizer.last_step.adam_norm.item(), optimizer.last_step.trust_ratio.item()]
    assert found[dtype] == pytest.approx(found[torch.float32], rel=1e-3)


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="this torch has no such gradients")
def test_gradients_of_another_type_are_refused_by_name() -> None:
    p = nn.Parameter(torch.randn(3, 3))
    p.grad_dtype = None
    p.grad = torch.randn(3, 3).bfloat16()
    with pytest.raises(RuntimeError, match=r"another type \(torch.bfloat16\) .* \(torch.float32\) \(head\)"):
        LARS([("head", p)], lr=0.1).step()


@pytest.mark.parametrize("kind", [LARS, LAMB])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_rate_in_a_tensor_of_one_element_is_a_rate(kind: Any, foreach: bool) -> None:
    after = []
    for lr in (0.1, torch.tensor(0.1), torch.tensor([0.1])):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(5, 5))
        p.grad = torch.randn(5, 5)
        kind([p], lr=lr, foreach=foreach).step()
        after.append(p.detach())
    assert torch.allclose(after[0], after[1])
    assert torch.allclose(after[0], after[2])


def test_the_state_of_a_parameter_with_gaps_stays_where_it_is() -> None:
    p = nn.Parameter(torch.randn(40, 60)[:, ::2])
    optimizer = LARS([p], lr=0.1)
    places = set()
    for _ in range(3):
        p.grad = torch.randn(40, 30)
        optimizer.step()
        places.add(optimizer.state[p]["momentum_buffer"].data_ptr())
    assert len(places) == 1
