from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tvlars_probe.curvature.lanczos import lanczos
from tvlars_probe.curvature.objective import Objective, supervised
from tvlars_probe.curvature.operators import HessianOperator
from tvlars_probe.curvature.scaling import effective
from tvlars_probe.errors import UserError
from tvlars_probe.probes.cadence import cadence

if TYPE_CHECKING:
    from pathlib import Path

ALL = ("hessian", "effective", "relative")


def probe(model: nn.Module, **options: Any) -> tvlars_probe.SharpnessProbe:
    return tvlars_probe.SharpnessProbe(model, F.cross_entropy, batch(1000), **{"every": 3, "operators": ALL, **options})


@pytest.mark.parametrize("name", ["lars", "tvlars", "lamb", "sgd-momentum", "adamw", "rmsprop"])
def test_a_probed_run_is_bit_identical_to_one_without(tmp_path: Path, name: str) -> None:
    weights, streams = [], []
    for probed in (False, True):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / f"{probed}", probes=[probe(model)] * probed) as rec:
            loop(model, optimizer, range(8), rec)
        weights.append([*model.state_dict().values()])
        streams.append(torch.rand(3))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert torch.equal(*streams)


def test_row_t_is_the_hessian_before_update_t(tmp_path: Path) -> None:
    """Against the same operators made by hand from the weights and the optimizer of that moment."""
    model = net()
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    expected: dict[int, dict[str, float]] = {}
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model, tol=1e-6)]) as rec:
        for step in range(7):
            if step % 3 == 0:
                expected[step] = by_hand(model, optimizer, step)
            loop(model, optimizer, range(step, step + 1), rec)
    rows = tvlars_probe.open_run(tmp_path / "run").curvature()
    for step, values in expected.items():
        found = rows[rows.step == step].set_index("operator")
        assert set(found.index.astype(str)) == set(values)
        for operator, value in values.items():
            assert found.value[operator] == pytest.approx(value, rel=1e-4)
    first_effective = rows[rows.operator == "effective"].iloc[0]
    assert (first_effective.step, first_effective.rate_step) == (3, 2)
    assert first_effective.limit == pytest.approx(3.8)
    assert (rows.phase == "train").all()
    assert (rows.bn_mode == "train").all()
    assert rows.converged.all()
    assert (tvlars_probe.open_run(tmp_path / "run").steps().probe_seconds > 0).all()


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_a_tensor_that_is_unfrozen_has_no_effective_sharpness_before_its_first_step(tmp_path: Path, name: str) -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS[name](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model, every=1)]) as rec:
        loop(model, optimizer, range(3), rec)
        model[0].requires_grad_(True)
        loop(model, optimizer, range(3, 6), rec)
    rows = tvlars_probe.open_run(rec.path).curvature()
    assert rows.step[rows.operator == "effective"].tolist() == [1, 2, 4, 5]
    assert rows.step[rows.operator == "hessian"].tolist() == [*range(6)]


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
    objective = Objective(model, supervised(F.cross_entropy), [batch(1000)], bn_mode="train")
    with objective.held():
        hessian = HessianOperator(objective, dict(model.named_parameters()))
        values = {"hessian": lanczos(hessian, tol=1e-6).top}
        scale = torch.cat([p.detach().norm().expand(p.numel()) for p in hessian.parameters])
        eye = torch.stack([hessian.matvec(e) for e in torch.eye(hessian.size)])
        values["relative"] = torch.linalg.eigvalsh((scale[:, None] * eye * scale).double())[-1].item()
        if step:
            rates = tvlars_probe.applied_rates(model, optimizer)
            values["effective"] = lanczos(effective(hessian, rates), tol=1e-6).top
    return values


def test_a_probe_goes_on_from_the_state_of_an_older_version() -> None:
    """It held eigenvectors to start from, and before that nothing else."""
    model = net()
    for state in ({"vectors": {"hessian": torch.ones(3)}}, {"vectors": {}, "count": 3, "spent": 2.0, "elapsed": 9.0}):
        one = probe(model, every=1)
        one.load_state_dict(state)
        assert one.state_dict()["spent"] == state.get("spent", 0.0)
        assert one.measure(0, "train", None)["converged"] == [True, True]


def test_a_resumed_probe_goes_on_at_its_steps(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model)]) as rec:
        loop(model, optimizer, range(4), rec)
        state = rec.state_dict()
    second = probe(model)
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[second], resume=state) as rec:
        loop(model, optimizer, range(4, 7), rec)
    rows = tvlars_probe.open_run(tmp_path / "run").curvature()
    assert rows[rows.operator == "hessian"].step.tolist() == [0, 3, 6]


def test_a_budget_thins_the_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("tvlars_probe.probes.sharpness.time.perf_counter", lambda: clock[0])
    model = net()
    one = probe(model, every=1, budget=0.1)
    monkeypatch.setattr(one, "_objective", one._objective)
    measured = []
    for step in range(100):
        clock[0] += 1.0
        if one.affordable():
            measured.append(step)
            one._spent, one._last = one._spent + 2.0, 2.0
            clock[0] += 2.0
    assert measured[0] == 0
    assert one._spent <= 0.1 * clock[0] + 2.0
    assert 4 <= len(measured) <= 7


def test_a_loss_that_is_not_finite_ends_no_run(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model, every=1)]) as rec:
        loop(model, optimizer, range(4), rec)
    assert tvlars_probe.open_run(tmp_path / "run").status == "diverged"


@pytest.mark.parametrize(
    ("every", "steps"),
    [("5", [0, 5, 10, 15]), (7, [0, 7, 14]), ("log", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16])],
)
def test_cadences(every: str | int, steps: list[int]) -> None:
    assert [step for step in range(17) if cadence(every).due(step)] == steps


def test_a_logarithmic_cadence_has_ten_steps_a_decade() -> None:
    assert sum(cadence("log").due(step) for step in range(1000, 10000)) == 10


@pytest.mark.parametrize("every", ["0", "-1", "often", "1.5"])
def test_other_cadences_are_refused(every: str) -> None:
    with pytest.raises(UserError, match="give 'log' or a number of steps"):
        cadence(every)


def test_a_budget_must_be_a_share() -> None:
    with pytest.raises(UserError, match="no share"):
        probe(net(), budget=1.5)
