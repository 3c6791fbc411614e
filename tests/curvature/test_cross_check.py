"""Products by forward over reverse, what they confirm, and what they don't."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import tvlars_probe
from tests.curvature.models import chunked, network, sample
from tests.oracles.hessians import dense_hessian
from tvlars_probe.curvature.cross_check import ForwardOverReverse, NotCheckedError
from tvlars_probe.curvature.density import spectral_density
from tvlars_probe.curvature.hutchpp import hutchpp
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import DenseOperator, DiagonalOperator, HessianOperator
from tvlars_probe.errors import UserError


class Cube(torch.autograd.Function):
    """x³, with a second derivative that is wrong by ``factor`` and a right forward derivative."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * CubeSlope.apply(x)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


class CubeSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return 3 * x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return Cube.factor * 6 * x * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 6 * x * tangent


class Unknown(torch.autograd.Function):
    """2x, without a forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Through(nn.Module):
    """A linear layer whose output goes through a function of autograd's."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(5, 3).double(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(self.fc(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x[:, 0])[0][:, -1])


class Padded(nn.Module):
    """Looks rows up, of which one has no gradient there, and has one in the head that shares them."""

    def __init__(self, *, shares: bool) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 4)
        nn.init.normal_(self.rows.weight)
        if shares:
            self.head.weight = self.rows.weight

    def forward(self, x: Tensor) -> Tensor:
        places = (2 * x.flatten(1)).long().abs().clamp(max=3)
        return self.head(self.rows(places).tanh().mean(1))


class Divided(nn.Module):
    """Divides by what is computed without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x.flatten(1)).tanh()
        with torch.no_grad():
            length = z.norm(dim=1, keepdim=True)
        return self.two(z / length)


def flat() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 5, generator=generator, dtype=torch.float64), torch.arange(12) % 3


@pytest.mark.parametrize("bn_mode", ["eval", "train", "frozen-batch"])
@pytest.mark.parametrize("name", ["mlp", "cnn with batch norm", "residual block"])
def test_the_product_is_that_of_the_hessian(name: str, bn_mode: str) -> None:
    model, (x, y) = network(name), sample()
    batches = [(x, y)] if bn_mode == "train" else chunked(x, y, 10, 14)
    objective = Objective(model, supervised(F.cross_entropy), batches, bn_mode=bn_mode)
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        v = torch.randn(hessian.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.allclose(ForwardOverReverse(hessian, torch.float64).matvec(v), hessian.matvec(v), atol=1e-12)
    if bn_mode == "eval":
        dense = dense_hessian(model.eval(), F.cross_entropy, x, y)
        assert torch.allclose(dense @ v, hessian.matvec(v), atol=1e-12)


SOUND = {
    "residual block": lambda: network("residual block"),
    "LSTM": Recurrent,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(16, 4)),
    "padding": lambda: Padded(shares=False),
    "padding with tied weights": lambda: Padded(shares=True),
    "no_grad": Divided,
}


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sound_figures_stay_converged_and_the_model_as_it_was(make: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, (x, y) = make().to(dtype), sample(dtype=dtype)
    before, held = copy.deepcopy(model.state_dict()), {id(p) for p in model.parameters()}
    found = tvlars_probe.sharpness(model, F.cross_entropy, (x, y), operators=("hessian", "ggn"), top=2, per_layer=True)
    assert {(m.check, m.converged) for m in found.measurements} == {("agrees", True)}
    assert found.notes == ()
    assert {id(p) for p in model.parameters()} == held
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    copy.deepcopy(model)  # which refuses tensors of a graph, wherever a module keeps them


def test_a_layer_that_is_called_from_two_places_is_put_back() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(5, 5).double()
    model = nn.Sequential(shared, nn.Tanh(), shared)
    model.add_module("tied", nn.Linear(5, 5).double())
    model[3].weight = shared.weight
    weight = shared.weight
    found = tvlars_probe.sharpness(model, F.cross_entropy, flat())
    assert found.measurements[0].check == "agrees"
    assert model[0].weight is model[2].weight is model[3].weight is weight


def test_a_wrong_second_derivative_takes_converged_away_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, data = Through(Cube), flat()
    sound = tvlars_probe.sharpness(model, F.cross_entropy, data)
    assert (sound.measurements[0].check, sound.measurements[0].converged) == ("agrees", True)
    monkeypatch.setattr(Cube, "factor", 0.9)
    wrong = tvlars_probe.sharpness(model, F.cross_entropy, data)
    assert (wrong.measurements[0].check, wrong.measurements[0].converged) == ("differs", False)
    assert "its graph holds Cube" in wrong.notes[0]
    assert abs(wrong.top - sound.top) <= 2 * (wrong.measurements[0].error or 0.0)


def test_without_a_forward_derivative_the_row_says_so_and_names_the_function() -> None:
    torch.manual_seed(0)
    found = tvlars_probe.sharpness(Through(Unknown), F.cross_entropy, flat(), trace=True, density=True)
    assert {m.check for m in found.measurements} == {"not cross-checked: Unknown"}
    assert found.densities["hessian"].check == "not cross-checked: Unknown"
    assert found.measurements[0].converged


def test_a_loss_that_reaches_the_parameters_by_itself_is_not_judged() -> None:
    """A penalty on tensors that the loss function holds: what is exchanged in the model doesn't reach it."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    weight = model.weight
    found = tvlars_probe.sharpness(model, lambda z, y: F.cross_entropy(z, y) + weight.square().sum(), flat())
    assert (found.measurements[0].check, found.measurements[0].converged) == ("not cross-checked", True)
    objective = Objective(model, supervised(F.cross_entropy), [flat()])
    with objective.held():
        hessian = HessianOperator(objective, {"w": model.weight, "other": torch.ones(1, requires_grad=True)})
        hessian.parameters[0] = nn.Parameter(model.weight.detach().clone())
        with pytest.raises(NotCheckedError, match="isn't the model's own"):
            ForwardOverReverse(hessian, torch.float64).matvec(torch.ones(hessian.size))


def test_digits_that_float32_has_lost_are_told() -> None:
    """Logits of a hundred: p(1 − p) is rounded to zero, and with it a part of the Hessian."""
    torch.manual_seed(0)
    _, y = flat()
    model = nn.Linear(5, 3).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    inputs = torch.eye(5, dtype=torch.float64)[torch.arange(12) % 3]
    for _ in range(400):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), y).backward()
        optimizer.step()
    model.weight.data *= 2.5
    exact = tvlars_probe.sharpness(model, F.cross_entropy, (inputs, y), tol=1e-8).top
    found = tvlars_probe.sharpness(model.float(), F.cross_entropy, (inputs.float(), y)).measurements[0]
    assert abs(found.value - exact) > 1e-2 * exact
    assert not found.converged
    assert (found.error or 0.0) > 1e-3 * exact


@pytest.mark.parametrize("engine", ["lanczos", "pyhessian"])
def test_weight_norms_products_are_called_asymmetric_by_every_estimator(engine: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(weight_norm(nn.Linear(5, 6)), nn.Tanh(), weight_norm(nn.Linear(6, 3))).double()
    for name, p in model.named_parameters():
        p.data *= 0.3 if name.endswith("original1") else 1.0
    x, y = flat()
    found = tvlars_probe.sharpness(
        model, F.mse_loss, (x, 10 * F.one_hot(y).double()), trace=True, density=engine == "lanczos",
        trace_matvecs=12, density_probes=1, engine=engine,
    )  # fmt: skip
    assert {(m.check, m.converged) for m in found.measurements} == {("asymmetric", False)}
    assert [density.check for density in found.densities.values()] == ["asymmetric"] * (engine == "lanczos")
    assert "remove_parametrizations" in found.notes[0]
    assert len(found.notes) == 1


@pytest.mark.parametrize("size", [30, 300])
def test_an_asymmetric_matrix_is_found_and_a_symmetric_one_is_not(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    part = torch.randn(size, size, generator=generator, dtype=torch.float64)
    for matrix, symmetric in ((part + part.T, True), (part + part.T + 0.02 * part, False)):
        for dtype in (torch.float32, torch.float64):
            operator = DenseOperator(matrix.to(dtype))
            found = lanczos(operator, top=2, tol=1e-2, basis_size=40)
            assert found.symmetric == hutchpp(operator, num_matvecs=20).symmetric == symmetric
            assert spectral_density(operator, probes=2, steps=10).symmetric == symmetric
            assert symmetric or not found.converged


def test_reentrant_checkpoints_are_refused_with_the_remedy() -> None:
    class Checkpointed(Through):
        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = checkpoint(torch.tanh, self.fc(x), use_reentrant=True)
            return self.fc(h @ torch.ones(3, 5, dtype=h.dtype))

    with warnings.catch_warnings(), pytest.raises(UserError, match="use_reentrant=False"):
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")  # where no graph is built
        tvlars_probe.sharpness(Checkpointed(None), F.cross_entropy, flat())


@pytest.mark.parametrize("basis_size", [None, 14], ids=["whole basis", "thick restart"])
def test_the_vector_of_the_check_holds_all_eigenvectors_and_a_random_one(basis_size: int | None) -> None:
    diagonal = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = lanczos(DiagonalOperator(diagonal), top=2, bottom=1, basis_size=basis_size, vectors=True)
    w, product = found.combined
    assert torch.allclose(diagonal * w, product, atol=1e-11)
    random = (w - found.vectors.sum(0)) / 300**0.5
    assert random.norm().item() == pytest.approx(1.0)
    # Of a random unit vector no component is large, those along eigenvectors included: here they are the axes.
    assert random.abs().max().item() < 4.5 / 300**0.5


def test_a_tensor_that_is_written_to_after_it_was_saved_is_an_error_as_in_plain_training() -> None:
    class Writes(Through):
        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(x).sigmoid()
            z = h.square()
            with torch.no_grad():
                h.mul_(3)
            return z

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        F.cross_entropy(Writes(None)(flat()[0]), flat()[1]).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tvlars_probe.sharpness(Writes(None), F.cross_entropy, flat())
