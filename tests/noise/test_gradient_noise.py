"""Signal and noise of models against a plain loop over samples; what is asked wrongly; what is put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.zoo import Words, dense, words
from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature.objective import supervised
from tvlars_probe.errors import NonFiniteLossError, UserError
from tvlars_probe.noise.cutting import objective_of
from tvlars_probe.noise.gradients import ByLayers, doubtful
from tvlars_probe.noise.layerwise import layers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.noise.results import GradientNoise


SAMPLES = 24


class TimeFirst(nn.Module):
    """A layer whose first dimension counts positions; samples come second."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        # As many positions as there are samples in the whole batch, so that no shape gives it away.
        scale = torch.linspace(0.1, 1.0, SAMPLES, dtype=x.dtype)[:, None, None]
        return self.head(torch.tanh(self.inner(x[None, :, :3] * scale)).mean(0))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.table = Words(), nn.Embedding(20, 8, padding_idx=1)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.table(self.words(x))).mean(1))


class Tied(nn.Module):
    """One layer is called twice, and its weight is used by hand once more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.first(torch.tanh(self.first(x))), self.first.weight))


class ByHand(nn.Module):
    """Of the last layer's weight the loss sees more than its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden) + F.linear(hidden**2, self.last.weight)


class Branching(nn.Module):
    """`torch.func.vmap` refuses it: its path depends on the data; its parameters are those of no layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T * (2.0 if x.sum().item() < 0 and len(x) == 1 else 1.0) ** 0


def images(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (1, 5)), *layers, nn.Flatten(), nn.LazyLinear(3))


def squares(*layers: nn.Module) -> nn.Sequential:
    grown = nn.Sequential(nn.Linear(5, 128), nn.Unflatten(1, (2, 8, 8)))
    return nn.Sequential(grown, *layers, nn.Flatten(), nn.LazyLinear(3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": dense,
    "convolutions in one dimension": lambda: images(
        nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(inplace=True),
        nn.Conv1d(4, 6, 2, dilation=2, groups=2),
    ),
    "convolutions in two dimensions": lambda: squares(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.GroupNorm(2, 8),
        nn.Conv2d(8, 12, 3, stride=2, groups=4), nn.Conv2d(12, 40, 2, padding_mode="circular"),
        nn.Conv2d(40, 60, 2),
    ),
    "embedding": lambda: words(nn.Embedding(20, 4), 20),
    "norms": lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3, bias=False)),
    "attention": Attention,
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), Last(nn.GRU(1, 4, batch_first=True)), nn.Linear(4, 3)),
    "tied": Tied,
    "by hand": ByHand,
    "time first": TimeFirst,
    "branching": Branching,
    "parametrised": lambda: dense(nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))),
}  # fmt: skip


class Last(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0][:, -1]


def data(n: int = SAMPLES) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 5, dtype=torch.float64), torch.randint(3, (n,))


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    model(data()[0][:4])  # lazy layers get their shapes, BatchNorm statistics that aren't 0 and 1
    return model


def looped(model: nn.Module, x: Tensor, y: Tensor, weights: Tensor | None = None) -> dict[str, tuple[float, float]]:
    """|G|² and tr Σ by scope, from each sample's own gradient, by the covariance matrix."""
    model.eval()
    named = dict(model.named_parameters())
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    for i in range(len(x)):
        each = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), [*named.values()])
        for name, gradient in zip(named, each, strict=True):
            rows[name].append(gradient.flatten() * (1.0 if weights is None else weights[i] / weights.mean()))
    found = {}
    scopes = {name: [name] for name in named} | {"all": [*named]}
    for scope, names in scopes.items():
        vectors = torch.cat([torch.stack(rows[name]) for name in names], dim=1).numpy()
        gram, m = vectors @ vectors.T, len(vectors)
        square = (gram.sum() - gram.trace()) / (m * (m - 1))
        found[scope] = square, float(((vectors - vectors.mean(axis=0)) ** 2).sum() / (m - 1))
    return found


def assert_equal(found: GradientNoise, expected: dict[str, tuple[float, float]]) -> None:
    frame = found.frame()
    for scope, (square, trace) in expected.items():
        row = frame[(frame.scope == scope) & (frame.scope_kind != "layer")].iloc[0]
        assert row.noise_trace == pytest.approx(trace, rel=1e-9), scope
        assert row.gradient_square == pytest.approx(square, rel=1e-9, abs=1e-9 * trace), scope


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_a_loop_over_samples_gives(name: str) -> None:
    model, (x, y) = model_of(name), data()
    found = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y))
    assert_equal(found, looped(model, x, y))
    assert len(found.notes) == (name in ("recurrent", "branching"))
    assert found.loss == pytest.approx(F.cross_entropy(model.eval()(x), y).item())


@pytest.mark.parametrize("name", ["dense", "convolutions in two dimensions", "attention", "branching"])
def test_it_does_not_depend_on_chunks_or_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = model_of(name), data()
    whole = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y)).frame().drop(columns="seconds")
    monkeypatch.setattr("tvlars_probe.noise.passes.MOST_AT_ONCE", 5)
    monkeypatch.setattr("tvlars_probe.noise.passes.OF_GRAM", 2)
    monkeypatch.setattr("tvlars_probe.noise.factors.BLOCK", 50)
    batches = [(x[:11], y[:11]), (x[11:], y[11:])]
    cut = tvlars_probe.gradient_noise(model, F.cross_entropy, batches).frame().drop(columns="seconds")
    errors = ["gradient_square_error", "noise_trace_error"]
    np.testing.assert_allclose(cut.noise_trace, whole.noise_trace, rtol=1e-10)
    np.testing.assert_allclose(cut.gradient_square, whole.gradient_square, rtol=1e-8, atol=1e-12)
    # Without inner products of pieces the errors are the plain jackknife's, which are larger.
    assert (cut[errors] >= 0.999 * whole[errors]).all(axis=None)
    assert (cut[errors] <= 1.5 * whole[errors]).all(axis=None)


def test_layers_of_torch_are_taken_apart_in_one_pass_without_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.noise.gradients.vmap", None)
    for name in ("dense", "convolutions in one dimension", "embedding", "norms"):
        model = model_of(name)
        assert not tvlars_probe.gradient_noise(model, F.cross_entropy, data()).notes
        assert {full for each in layers_of(model.eval(), dict(model.named_parameters())) for full in
                each.tensors.values()} == {*dict(model.named_parameters())}  # fmt: skip


def test_weights_make_a_samples_gradient_that_of_its_weighted_loss() -> None:
    """Some weigh nothing, and their loss is NaN."""
    model, (x, y) = model_of("dense"), data()
    y = y.clone()
    y[3:7] = -100
    classes = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    loss_fn = nn.CrossEntropyLoss(weight=classes)

    def weigh(batch: tuple[Tensor, ...]) -> Tensor:
        return torch.where(batch[1] >= 0, classes[batch[1].clamp(min=0)], 0.0).sum()

    expected = looped(model, x, y.clamp(min=0), torch.where(y >= 0, classes[y.clamp(min=0)], 0.0))
    for name in ("layers", "vmap", "loop"):
        monkey = pytest.MonkeyPatch()
        if name != "layers":
            monkey.setattr("tvlars_probe.noise.gradients.layers_of", lambda *_: [])
        if name == "loop":
            monkey.setattr("tvlars_probe.noise.gradients.vmap", None)
        found = tvlars_probe.gradient_noise(model, loss_fn, (x, y), weights=weigh)
        monkey.undo()
        assert_equal(found, expected)


def test_pieces_have_the_noise_of_one_sample_and_batch_norm_of_their_own() -> None:
    model, (x, y) = model_of("convolutions in one dimension"), data()
    found = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y), piece=5, bn_mode="train")
    model.train()
    rows = []
    for k in range(4):
        each = torch.autograd.grad(
            F.cross_entropy(model(x[5 * k : 5 * k + 5]), y[5 * k : 5 * k + 5]), [*model.parameters()]
        )
        rows.append(torch.cat([gradient.flatten() for gradient in each]))
    trace = torch.cov(torch.stack(rows).T).trace().item()
    assert found.noise_trace == pytest.approx(5 * trace)
    assert (found.whole.pieces, found.whole.piece_size, found.whole.samples) == (4, 5.0, 20)
    assert found.whole.bn_mode == "train"
    assert found.notes == ("4 samples left over from pieces of 5 were left out",)


@pytest.mark.parametrize("mode", ["eval", "frozen-batch"])
def test_pieces_and_single_samples_see_one_function(mode: str) -> None:
    model, (x, y) = model_of("convolutions in two dimensions"), data()
    found = [
        tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y), piece=piece, bn_mode=mode).frame()
        for piece in (None, 1)
    ]
    columns = ["gradient_square", "gradient_square_error", "noise_trace", "noise_trace_error", "loss"]
    np.testing.assert_allclose(found[0][columns], found[1][columns], rtol=1e-7, atol=1e-12)


def test_what_is_asked_wrongly_is_refused_with_the_remedy() -> None:
    model, (x, y) = model_of("convolutions in one dimension"), data()

    def measure(**asked: Any) -> GradientNoise:
        return tvlars_probe.gradient_noise(asked.pop("model", model), F.cross_entropy, (x, y), **asked)

    with pytest.raises(UserError, match=r"BatchNorm in train mode joins.*piece=32.*'eval' or 'frozen-batch'"):
        measure(bn_mode="train")
    with pytest.raises(UserError, match=r"the loss joins the samples.*piece=32"):
        measure(is_sum_over_samples=False)
    with pytest.raises(UserError, match=r"24 samples over 1 rank\(s\) give 1 pieces of 20: .* smaller pieces"):
        measure(piece=20)
    with pytest.raises(UserError, match="piece=0: give a number of samples, a whole one of 1 or more, or None"):
        measure(piece=0)
    with pytest.raises(UserError, match=r"memory budget of 1,000 bytes is too small: .*allowed: [\d,]+ or more"):
        measure(memory_budget=1000)
    with pytest.raises(UserError, match="needs a loss that is a mean over samples: use bn_mode"):
        measure(bn_mode="train", piece=4, eigenvectors=1)
    with pytest.raises(UserError, match=r"eigenvectors of the shape \(3,\): .* have, \d+"):
        measure(eigenvectors=torch.ones(3))
    with pytest.raises(UserError, match="no parameter is chosen"):
        measure(parameters=lambda _: False)
    with pytest.raises(UserError, match="isn't the mean over its samples"):
        tvlars_probe.gradient_noise(model, nn.CrossEntropyLoss(reduction="sum"), (x, y))


def test_a_loss_that_is_not_finite_is_told() -> None:
    model, (x, y) = model_of("dense"), data()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(NonFiniteLossError, match="loss on the sample is nan: there is no gradient"):
        tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y))


def test_frozen_and_idle_parameters_are_left_out_by_name() -> None:
    model, (x, y) = model_of("dense"), data()
    model.idle = nn.Linear(2, 2).double()
    model.forward = lambda z: model[2](model[1](model[0](z)))  # type: ignore[method-assign, operator, index]
    model[0].weight.requires_grad_(False)  # type: ignore[index]
    found = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y))
    assert found.left_out == ("0.weight", "idle.weight", "idle.bias")
    assert found.frame().scope.tolist() == ["all", "0", "2", "0.bias", "2.weight", "2.bias"]


def test_the_share_along_eigenvectors_is_that_of_the_covariance() -> None:
    model, (x, y) = model_of("dense"), data(60)
    named = dict(model.named_parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]),
                                                            [*named.values()])]) for i in range(60)
    ]  # fmt: skip
    covariance = torch.cov(torch.stack(rows).T)
    start = torch.cat([p.detach().flatten() for p in named.values()])

    def loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, [p.numel() for p in named.values()])
        given = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, given, (x,)), y)

    vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss, start))[1][:, -3:]
    expected = ((vectors.T @ covariance @ vectors).trace() / covariance.trace()).item()
    found = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y), eigenvectors=3).whole
    given = tvlars_probe.gradient_noise(model, F.cross_entropy, (x, y), eigenvectors=vectors.T).whole
    assert given.top_share == pytest.approx(expected, rel=1e-8)
    assert found.top_share == pytest.approx(expected, rel=0.02)
    assert found.top_vectors == given.top_vectors == 3
    assert given.top_share_error is not None
    assert 0 < given.top_share_error < 0.2


def test_the_frame_has_the_columns_of_the_table() -> None:
    from tvlars_probe.traces.schema import TABLES

    model = model_of("dense")
    found = tvlars_probe.gradient_noise(model, F.cross_entropy, data())
    of_a_run = {"run", "step", "phase", "measurement_id", "created_at", "split"}
    assert [*found.frame().columns] == [c.name for c in TABLES["noise"].columns if c.name not in of_a_run]
    ratios = found.ratios()
    assert ratios.signal_to_noise[0] == pytest.approx(found.gradient_square / found.noise_trace)


def test_doubt_falls_on_a_layer_of_whose_weight_the_loss_sees_more() -> None:
    model, (x, y) = model_of("by hand"), data()
    objective = objective_of(model, supervised(F.cross_entropy), (x, y), shards=Ranks())
    with objective.held():
        way = ByLayers(objective, dict(model.named_parameters()), 1.0)
        alone, among = way.gradients((x[:2], y[:2]), whole=True), way.gradients((x, y))
        assert doubtful(alone, among, way.parameters) == {"last.weight"}
