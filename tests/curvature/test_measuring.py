"""Every measure of every operator, whole and by layer, against dense matrices built by another route."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.curvature.models import NETWORKS, network, sample
from tests.curvature.test_operators import by_another_route
from tests.oracles.hessians import dense_gauss_newton, dense_hessian
from tvlars_probe.curvature.results import OPERATORS, Sharpness
from tvlars_probe.curvature.scaling import Rates
from tvlars_probe.errors import UserError


def some_rates(model: nn.Module) -> Rates:
    """One rate for each tensor, or for each element as the Adam family has it; every other tensor decays."""
    generator = torch.Generator().manual_seed(0)
    rates = {
        name: 0.1 + torch.rand(() if p.ndim > 1 else p.shape, generator=generator, dtype=torch.float64)
        for name, p in model.named_parameters()
    }
    return Rates(rates=rates, decay={name: 0.1 * (place % 2) for place, name in enumerate(rates)})


def squares(z: Tensor, y: Tensor | None) -> Tensor:
    """Half of the outputs' squares, without each sample's mean: the loss whose curvature adaptive sharpness has."""
    return (z - z.mean(1, keepdim=True)).square().sum(1).mean() / 2


def matrices(model: nn.Module, operator: str, rates: Rates) -> dict[str, Tensor]:
    """The operator as a matrix, whole ("all") and in the blocks of the layers."""
    params = dict(model.named_parameters())
    if operator == "ggn":
        dense = dense_gauss_newton(model, F.cross_entropy, *sample())
    elif operator == "adaptive":
        outputs = copy.deepcopy(model).eval()(sample()[0]).detach()
        dense = dense_gauss_newton(model, squares, *sample()) / (2 * squares(outputs, None))
    else:
        dense = by_another_route(model, *sample(), "eval")
    owners = [name.rpartition(".")[0] for name, p in params.items() for _ in range(p.numel())]

    def diagonal(of: dict[str, Tensor]) -> Tensor:
        return torch.cat([of[name].expand(p.shape).reshape(-1) for name, p in params.items()]).double()

    if operator == "effective":
        root = diagonal(dict(rates.rates)).sqrt()
        decay = diagonal({name: torch.tensor(rates.decay[name], dtype=torch.float64) for name in params})
        dense = root[:, None] * (dense + torch.diag(decay)) * root
    if operator == "relative":
        norms = diagonal({name: p.detach().norm() for name, p in params.items()})
        dense = norms[:, None] * dense * norms
    if operator == "adaptive":
        sizes = diagonal({name: p.detach().abs() for name, p in params.items()})
        dense = sizes[:, None] * dense * sizes
    places = {layer: [i for i, owner in enumerate(owners) if owner == layer] for layer in owners}
    return {"all": dense} | {layer: dense[some][:, some] for layer, some in places.items()}


def measured(model: nn.Module, operator: str, rates: Rates, **measures: object) -> Sharpness:
    return tvlars_probe.sharpness(
        model, F.cross_entropy, sample(), operators=operator, rates=rates, per_layer=True, **measures
    )


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_at_both_ends_are_those_of_the_dense_matrices(name: str, operator: str) -> None:
    model = network(name)
    rates = some_rates(model)
    bottom = 1 if operator in ("ggn", "adaptive") else 2  # whose smallest eigenvalue is 0 many times, and found once
    found = measured(model, operator, rates, top=2, bottom=bottom, tol=1e-9)
    exact = {scope: torch.linalg.eigvalsh(m).numpy() for scope, m in matrices(model, operator, rates).items()}
    assert {m.scope for m in found.measurements} == set(exact)
    for m in found.measurements:
        spectrum = exact[m.scope]
        place = len(spectrum) - m.rank if m.rank > 0 else -m.rank - 1
        assert m.converged
        assert m.value == pytest.approx(spectrum[place], abs=1e-8 * np.abs(spectrum).max())


@pytest.mark.parametrize("operator", OPERATORS)
def test_traces_are_within_their_standard_errors(operator: str) -> None:
    """Those of 12 seeds scatter as Student's t with 14 degrees of freedom: 0.1 of 72 are expected beyond four."""
    offs: list[float] = []
    for name in NETWORKS:
        model = network(name)
        rates = some_rates(model)
        exact = {scope: m.trace().item() for scope, m in matrices(model, operator, rates).items()}
        for seed in range(12):
            found = measured(model, operator, rates, top=0, trace=True, trace_matvecs=45, seed=seed)
            for m in found.measurements:
                if m.error:
                    offs.append(abs(m.value - exact[m.scope]) / m.error)
                else:
                    assert m.matvecs <= 45
                    assert m.value == pytest.approx(exact[m.scope], rel=1e-9, abs=1e-12)
    assert 0.5 <= np.mean(np.array(offs) < 1) <= 0.85
    assert sorted(offs)[-2] < 4
    assert max(offs) < 4.5


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_densities_are_those_of_the_dense_matrices(name: str, operator: str) -> None:
    model = network(name)
    rates = some_rates(model)
    found = measured(model, operator, rates, top=0, density=True)
    densities = {"all": found.densities[operator]}
    densities |= {layer: density for (_, layer), density in found.layer_densities.items()}
    for scope, matrix in matrices(model, operator, rates).items():
        spectrum, density = torch.linalg.eigvalsh(matrix).numpy(), densities[scope]
        assert wasserstein_distance(density.grid, spectrum, density.density) < 0.01 * np.ptp(spectrum)
        assert density.matvecs == len(spectrum)
        assert density.probes == 0
        assert (density.standard_error == 0).all()


@pytest.mark.parametrize("width", [20, 40])
def test_the_density_of_a_larger_network_is_estimated(width: int) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(16, width), nn.Tanh(), nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, 4)
    model, (x, y) = nn.Sequential(nn.Flatten(), *layers).double(), sample(60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    spectrum = torch.linalg.eigvalsh(dense_hessian(model, F.cross_entropy, x, y)).numpy()
    density = tvlars_probe.sharpness(model, F.cross_entropy, (x, y), top=0, density=True).densities["hessian"]
    assert density.matvecs == 160 < len(spectrum)
    assert wasserstein_distance(density.grid, spectrum, density.density) < 0.01 * np.ptp(spectrum)
    smooth = stats.norm.pdf(density.grid[:, None], spectrum, density.sigma).mean(axis=1)
    assert (np.abs(density.density - smooth) <= 5 * density.standard_error + 1e-6 * smooth.max()).mean() > 0.9


def test_what_is_left_out_does_not_depend_on_the_order_of_the_operators() -> None:
    model = network("mlp")
    nn.init.zeros_(model[1].bias).requires_grad_(False)  # frozen, and left out of the relative operator for its zeros
    for order in (("hessian", "relative"), ("relative", "hessian")):
        assert tvlars_probe.sharpness(model, F.cross_entropy, sample(), operators=order).left_out == ("1.bias",)


def test_operators_on_the_same_parameters_share_the_hessian_and_give_their_own_figures() -> None:
    model, passes = network("mlp"), 0

    def loss(z: Tensor, y: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return F.cross_entropy(z, y)

    both = tvlars_probe.sharpness(model, loss, sample(), operators=("hessian", "relative"))
    assert passes == 4  # the loss, one graph, a cross-check of each
    for m in both.measurements:
        alone = tvlars_probe.sharpness(model, F.cross_entropy, sample(), operators=(m.operator,))
        assert m.value == pytest.approx(alone.top, rel=1e-12)


def test_pyhessian_measures_layers_that_have_fewer_parameters_than_eigenvalues_were_asked_for() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 4, bias=False)).double()
    model.add_module("small", nn.Linear(4, 4))
    model[3].double()
    model[3].weight.requires_grad_(False)  # four parameters are left
    found = tvlars_probe.sharpness(model, F.cross_entropy, sample(), engine="pyhessian", top=5, per_layer=True)
    assert sum(m.scope == "small" for m in found.measurements) == 4


def test_a_model_of_zeros_has_no_top_to_ask_for() -> None:
    model = nn.Linear(16, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, y = sample(dtype=torch.float32)
    found = tvlars_probe.sharpness(model, F.cross_entropy, (x.flatten(1), y), operators="relative")
    with pytest.raises(UserError, match="no top eigenvalue was measured"):
        _ = found.top
