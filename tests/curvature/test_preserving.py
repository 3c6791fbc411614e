"""Measuring changes no bit of a model, of its sample and of the process; and it measures one function."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.zoo import ZOO, dense, fingerprint, member, words
from tests.oracles.hessians import dense_hessian
from tests.ranked import on_ranks
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.epsilon import epsilon_sharpness
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.preserving import preserved
from tvlars_probe.curvature.scaling import Rates
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERYTHING: dict[str, Any] = {
    "operators": ("hessian", "effective", "relative"), "top": 1, "bottom": 1, "trace": True, "density": True,
    "epsilon": True, "max_matvecs": 3, "trace_matvecs": 6, "density_probes": 1, "density_steps": 2,
}  # fmt: skip
ENGINES: dict[str, dict[str, Any]] = {
    "lanczos": EVERYTHING,
    "pyhessian": {"engine": "pyhessian", "trace": True, "trace_matvecs": 6},
}
ONLY_ONCE = "embedding bag with max_norm"
"""torch can't differentiate this one twice."""


def fails_of(name: str) -> contextlib.AbstractContextManager[object]:
    return pytest.raises(NotImplementedError) if name == ONLY_ONCE else contextlib.nullcontext()


def measure(model: nn.Module, loss: Callable[..., Tensor], data: list[tuple[Tensor, Tensor]], **asked: Any) -> Any:
    rates = Rates(rates={name: torch.tensor(0.1) for name, _ in model.named_parameters()})
    return tvlars_probe.sharpness(model, loss, data, rates=rates, **asked)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in {*before, *after} if before.get(name) != after.get(name)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ZOO)
def test_measuring_changes_nothing(name: str, engine: str) -> None:
    model, data = member(name)
    before = fingerprint(model, data)
    with fails_of(name):
        measure(model, F.cross_entropy, data, **ENGINES[engine])
    assert differences(before, fingerprint(model, data)) == []


@pytest.mark.parametrize("mode", ["train", "frozen-batch"])
def test_batch_norm_keeps_its_statistics_in_every_mode(mode: str) -> None:
    model, data = member("batch norm without momentum")
    one = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    before = fingerprint(model, one)
    measure(model, F.cross_entropy, one, bn_mode=mode, **EVERYTHING)
    assert differences(before, fingerprint(model, one)) == []


class Interrupted:
    """A loss that raises when it is computed, or differentiated, for the k-th time."""

    def __init__(self, error: type[BaseException], k: int, *, backward: bool) -> None:
        self.error, self.left, self.backward = error, k, backward

    def count(self) -> None:
        self.left -= 1
        if not self.left:
            raise self.error

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        if not self.backward:
            self.count()
        elif z.requires_grad:
            z = Counted.apply(z, self)
        return F.cross_entropy(z, y)


class Counted(torch.autograd.Function):
    """The identity, whose backward passes are counted."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, counter: Interrupted) -> Tensor:
        ctx.counter = counter
        return z.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.counter.count()
        return Counted.apply(grad, ctx.counter), None


@pytest.mark.parametrize(
    ("error", "k", "backward"),
    [(RuntimeError, 1, False), (KeyboardInterrupt, 40, False), (KeyboardInterrupt, 3, True), (OSError, 30, True)],
)
@pytest.mark.parametrize("name", ZOO)
def test_an_error_midway_changes_nothing(name: str, error: type[BaseException], k: int, backward: bool) -> None:
    model, data = member(name)
    loss = Interrupted(error, k, backward=backward)
    before = fingerprint(model, data)
    with pytest.raises((error, NotImplementedError) if name == ONLY_ONCE else error):
        measure(model, loss, data, **EVERYTHING)
    assert differences(before, fingerprint(model, data)) == []


@pytest.mark.parametrize("name", ZOO)
def test_a_search_for_epsilon_sharpness_that_ends_midway_changes_nothing(name: str) -> None:
    model, data = member(name)
    objective = Objective(model, supervised(Interrupted(KeyboardInterrupt, 60, backward=False)), data)
    before = fingerprint(model, data)
    with pytest.raises(KeyboardInterrupt):
        for seed in range(9):
            epsilon_sharpness(objective, dict(model.named_parameters()), seed=seed)
    assert differences(before, fingerprint(model, data)) == []


@pytest.mark.parametrize("name", ZOO)
def test_a_graph_of_the_callers_stays_valid(name: str) -> None:
    """Autograd refuses a graph whose tensors have been written to since."""
    gradients = []
    for measures in (False, True):
        model, data = member(name)
        loss = F.cross_entropy(model(data[0][0].clone()), data[0][1])
        if measures:
            with fails_of(name):
                measure(model, F.cross_entropy, data)
        loss.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    assert all(a is b or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_flags_of_the_process_come_back_where_a_model_sets_them() -> None:
    def compute(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(True)
        return F.cross_entropy(model(batch[0]), batch[1])

    model, data = member("compiled")
    before = fingerprint(model, data)
    objective = Objective(model, compute, data)
    objective.loss()
    assert differences(before, fingerprint(model, data)) == []


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_it_measures_the_same_in_every_mode_of_the_callers(mode: Callable[[], Any]) -> None:
    model, data = member("lazy buffers")
    expected = measure(model, F.cross_entropy, data).top
    with mode():
        copies = [(x.clone(), y.clone()) for x, y in data]
        before = fingerprint(model, data)
        assert measure(model, F.cross_entropy, copies).top == expected
        assert differences(before, fingerprint(model, data)) == []


def test_weights_that_a_parametrization_keeps_are_not_mixed_with_those_of_the_copy() -> None:
    model, data = member("spectral_norm")
    expected = measure(model, F.cross_entropy, data, epsilon=True).frame().value.tolist()
    model.eval()
    outputs = model(data[0][0])
    with nn.utils.parametrize.cached():
        for _ in range(2):  # without and with weights that are kept
            assert measure(model, F.cross_entropy, data, epsilon=True).frame().value.tolist() == expected
            assert torch.equal(model(data[0][0]), outputs)


class LowPrecision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = dense()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inside(x).float()


def test_weights_that_autocast_keeps_are_not_mixed_with_those_of_the_copy() -> None:
    torch.manual_seed(0)
    model, data = LowPrecision(), member("compiled")[1]
    expected = measure(model, F.cross_entropy, data, epsilon=True).frame().value.tolist()
    outputs = model(data[0][0])
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert measure(model, F.cross_entropy, data, epsilon=True).frame().value.tolist() == expected
            assert torch.equal(model(data[0][0]), outputs)


class Smoothed(nn.Module):
    """A loss with a parameter, a buffer that counts, and a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(F.dropout(z / self.temperature, training=self.training), y)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_a_module_is_left_alone_and_in_evaluation_mode(engine: str) -> None:
    model, data = member("compiled")
    loss = Smoothed()
    before = fingerprint(loss, data)
    found = measure(model, loss, data, tol=1e-6, engine=engine)
    assert differences(before, fingerprint(loss, data)) == []
    expected = measure(model, lambda z, y: F.cross_entropy(z / 2, y), data, tol=1e-6)
    assert found.top == pytest.approx(expected.top, rel=1e-4)


def test_modules_share_inside_what_they_share_outside() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    table = torch.ones(2)
    model[0].register_buffer("table", table)
    model[1].table, model[1].nested = table, {"tables": [table]}  # type: ignore[assignment]
    with preserved(model):
        inside = model[0].table
        assert inside is not table
        assert inside is model[1].table
        assert inside is model[1].nested["tables"][0]  # type: ignore[index]
    assert model[1].nested["tables"][0] is table is model[0].table  # type: ignore[index]


def test_a_lazy_layer_is_refused() -> None:
    with pytest.raises(UserError, match="pass a batch through the model first"):
        measure(nn.Sequential(nn.Linear(5, 3), nn.LazyLinear(3)), F.cross_entropy, member("lstm")[1])


def rescaled(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in float64 whose rows are rescaled by hand: those that ``x`` looks up, to a norm of one at most."""
    twin = copy.deepcopy(model).double().eval()
    twin[1].max_norm = None
    with torch.no_grad():
        for row in twin[0](x).unique().tolist():
            twin[1].weight[row] /= twin[1].weight[row].norm().clamp_min(1.0)
    return twin


def test_rows_of_an_embedding_with_max_norm_are_rescaled_and_then_held() -> None:
    """The Hessian is that of the loss as a function of the rescaled rows, against a dense one in float64."""
    model, data = member("embedding with max_norm")
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    twin = rescaled(model, x)
    exact = torch.linalg.eigvalsh(dense_hessian(twin, F.cross_entropy, x, y))[-1].item()
    for batches in (data, [(x, y)]):
        found = measure(model, F.cross_entropy, batches, tol=1e-6)
        assert found.top == pytest.approx(exact, rel=1e-5)
        assert found.loss == pytest.approx(F.cross_entropy(twin(x), y).item(), rel=1e-6)
        relative = measure(model, F.cross_entropy, batches, tol=1e-6, operators="relative")
        by_hand = measure(twin, F.cross_entropy, batches, tol=1e-6, operators="relative")
        assert relative.top == pytest.approx(by_hand.top, rel=1e-5)


def of_a_shard(rank: int, world_size: int) -> list[float]:
    model, data = member("embedding with max_norm")
    found = tvlars_probe.sharpness(
        model, F.cross_entropy, data[rank], operators=("hessian", "relative"), tol=1e-6, shards=Ranks.of_process_group()
    )
    return [m.value for m in found.measurements]


def test_ranks_rescale_one_anothers_rows(tmp_path: Path) -> None:
    """The norm of the embedding, by which the relative operator scales, must be one and the same on all ranks."""
    model, data = member("embedding with max_norm")
    one = tvlars_probe.sharpness(model, F.cross_entropy, data, operators=("hessian", "relative"), tol=1e-6)
    for found in on_ranks(of_a_shard, 2, tmp_path):
        assert found == pytest.approx([m.value for m in one.measurements], rel=1e-5)


def test_a_model_that_works_in_place_on_its_input_is_measured_on_the_input() -> None:
    model, data = member("in place on its input")
    twin = copy.deepcopy(model)
    twin[0].inplace = False
    for engine in ENGINES:
        found, expected = (measure(m, F.cross_entropy, data, engine=engine, tol=1e-5) for m in (model, twin))
        assert found.top == pytest.approx(expected.top, rel=1e-6)


def test_hooks_of_modules_on_gradients_do_not_change_the_hessian() -> None:
    torch.manual_seed(0)
    model, plain = member("hooks on gradients")[0], dense()
    plain.load_state_dict(model.state_dict())
    data = member("lstm")[1]
    for engine in ENGINES:
        found, expected = (measure(m, F.cross_entropy, data, engine=engine, tol=1e-6) for m in (model, plain))
        assert found.top == pytest.approx(expected.top, rel=1e-6)


def test_hooks_of_all_modules_on_gradients_do_not_change_the_hessian_and_stay() -> None:
    model, data = member("lstm")
    expected = measure(model, F.cross_entropy, data).top
    calls = []
    handle = nn.modules.module.register_module_full_backward_hook(lambda *_: calls.append(1))
    try:
        assert measure(model, F.cross_entropy, data).top == expected
        assert not calls
        F.cross_entropy(model(data[0][0].requires_grad_()), data[0][1]).backward()
        assert calls
    finally:
        handle.remove()


def test_words_are_looked_up() -> None:
    """Otherwise the members with max_norm would test nothing."""
    model = words(nn.Embedding(20, 4, max_norm=1.0), 20)
    before = model[1].weight.detach().clone()
    model(member("lstm")[1][0][0])
    assert not torch.equal(before, model[1].weight)
