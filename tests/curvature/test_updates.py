"""Updates, made and coming, and the curvature along them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import NETWORKS, chunked, network, sample
from tests.oracles.hessians import dense_hessian
from tests.probes.small_loop import OPTIMIZERS, UNKNOWN
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.updates import at_weights, coming_update, copies, update_since
from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.registry import OPTIMIZERS as REGISTERED
from tvlars_probe.optimizers.registry import OptimizerConfig


def deep() -> nn.Module:
    torch.manual_seed(0)
    inner = [nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)]
    return nn.Sequential(nn.Flatten(), *inner)


def trained(name: str, build: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network and an optimizer that has made some steps, in evaluation mode."""
    model = deep() if name == "deep" else network(name, torch.float32).eval()
    optimizer = build(model.parameters())
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = sample(dtype=torch.float32)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


BUILDERS = {
    **OPTIMIZERS,
    **UNKNOWN,
    **{f"train's {name}": OptimizerConfig(name=name).build for name in REGISTERED},
}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_coming_update_is_the_one_that_is_then_made(name: str) -> None:
    model, optimizer = trained("deep", BUILDERS[name])
    parameters, state = dict(model.named_parameters()), copy.deepcopy(optimizer.state_dict())
    objective = Objective(model, supervised(F.cross_entropy), chunked(*sample(dtype=torch.float32), 24))
    update = coming_update(objective, parameters, optimizer)
    assert str(optimizer.state_dict()) == str(state)
    before = copies(parameters)
    step(model, optimizer)
    made = update_since(before, parameters, 0.0)
    for key in parameters:
        torch.testing.assert_close(update.changes[key], made.changes[key], rtol=1e-5, atol=1e-8)
    assert update.lr == optimizer.param_groups[0]["lr"]
    assert all(p.grad is None for p in model.parameters())


def test_a_recorder_does_not_record_the_coming_update(tmp_path: Any) -> None:
    model, optimizer = trained("mlp", OPTIMIZERS["sgd"])
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        step(model, optimizer)
        tvlars_probe.sharpness(
            model, F.cross_entropy, sample(dtype=torch.float32), top=0, optimizer=optimizer, critical_sharpness=True
        )
        rec.log(loss=1.0)
    assert len(tvlars_probe.open_run(rec.path).steps()) == 1


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model, other = network("mlp"), network("mlp")
    objective = Objective(model, supervised(F.cross_entropy), sample())
    with pytest.raises(UserError, match="updates none of the parameters"):
        coming_update(objective, dict(model.named_parameters()), torch.optim.SGD(other.parameters(), 0.1))


def test_an_optimizer_that_cannot_be_copied_is_refused() -> None:
    model = network("mlp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["lock"] = (item for item in ())
    objective = Objective(model, supervised(F.cross_entropy), sample())
    with pytest.raises(UserError, match="SGD can't be copied"):
        coming_update(objective, dict(model.named_parameters()), optimizer)


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    model = nn.Linear(3, 2)
    objective = Objective(model, supervised(F.mse_loss), (torch.ones(4, 3), torch.ones(4, 2)))
    with pytest.raises(UserError, match="LBFGS doesn't step by a gradient alone"):
        coming_update(objective, dict(model.named_parameters()), torch.optim.LBFGS(model.parameters()))


def test_weights_are_put_back_bit_for_bit_with_their_memory_even_after_an_error() -> None:
    model = network("mlp")
    parameters = dict(model.named_parameters())
    earlier = {name: torch.randn_like(p) for name, p in parameters.items()}
    now, places = copies(parameters), [p.data_ptr() for p in parameters.values()]
    loss = F.cross_entropy(model(sample()[0]), sample()[1])

    def use() -> None:
        with at_weights(parameters, earlier):
            assert all(torch.equal(p, earlier[name]) for name, p in parameters.items())
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        use()
    assert all(torch.equal(p, now[name]) for name, p in parameters.items())
    assert [p.data_ptr() for p in parameters.values()] == places
    loss.backward()  # a graph that has saved the weights still takes them for its own


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


@pytest.mark.parametrize("name", NETWORKS)
def test_directional_sharpness_is_the_dense_quadratic_form(name: str) -> None:
    model, (x, y) = network(name), sample()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    found = tvlars_probe.sharpness(
        model, F.cross_entropy, chunked(x, y, 9, 15), top=0, optimizer=optimizer, directional_sharpness=True
    )
    objective = Objective(model, supervised(F.cross_entropy), (x, y))
    delta = flat(dict(coming_update(objective, dict(model.named_parameters()), optimizer).changes))
    matrix = dense_hessian(copy.deepcopy(model).eval(), F.cross_entropy, x, y)
    (row,) = found.measurements
    assert row.value == pytest.approx((delta @ matrix @ delta / (delta @ delta)).item(), rel=1e-10)
    assert (row.measure, row.operator, row.error, row.matvecs) == ("directional_sharpness", "hessian", None, 1)


def test_a_parameter_without_effect_that_the_update_moves_counts_in_its_length() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.idle = network("mlp"), nn.Parameter(torch.ones(5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 0 * self.idle.sum() if False else self.inner(x)

    model, (x, y) = Idle(), sample()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
    objective = Objective(model, supervised(F.cross_entropy), (x, y))
    update = coming_update(objective, parameters, optimizer)
    found = tvlars_probe.sharpness(
        model, F.cross_entropy, (x, y), top=0, optimizer=optimizer, directional_sharpness=True
    )
    # SGD leaves what has no gradient alone, weight decay included.
    assert not update.changes["idle"].any()
    inner = tvlars_probe.sharpness(
        model.inner, F.cross_entropy, (x, y), top=0, directional_sharpness=True,
        optimizer=torch.optim.SGD(model.inner.parameters(), 0.1, weight_decay=0.5),
    )  # fmt: skip
    assert found.measurements[0].value == pytest.approx(inner.measurements[0].value)
    assert found.left_out == ("idle",)


def test_an_update_of_zero_has_no_directional_sharpness_and_a_note() -> None:
    model, data = network("mlp"), sample()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    found = tvlars_probe.sharpness(
        model, F.cross_entropy, data, top=0, optimizer=optimizer, directional_sharpness=True, critical_sharpness=True
    )
    assert found.measurements == ()
    assert [note.partition(":")[0] for note in found.notes] == [
        "directional sharpness is unknown",
        "critical sharpness is unknown",
    ]
