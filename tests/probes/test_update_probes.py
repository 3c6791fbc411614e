"""Probes that measure the update of a step, at the weights before it, just after it was made."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

import tvlars_probe
from tests.oracles.hessians import dense_hessian
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tests.ranked import on_ranks
from tvlars_probe.curvature.batches import disjoint
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

MEASURES = ("eigenvalue", "batch", "directional", "critical")


def probe(model: nn.Module, **options: Any) -> tvlars_probe.SharpnessProbe:
    settings = {"every": 2, "measures": MEASURES, "batch_size": 4, "bn_mode": "eval", "tol": 0.1, **options}
    return tvlars_probe.SharpnessProbe(model, F.cross_entropy, batch(1000), **settings)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def loss_of(model: nn.Module, weights: Tensor) -> Tensor:
    twin = copy.deepcopy(model).double().eval()
    nn.utils.vector_to_parameters(weights, twin.parameters())
    x, y = batch(1000)
    return F.cross_entropy(twin(x.double()), y).detach()


def along_gradient(model: nn.Module, weights: Tensor, part: tuple[Tensor, ...]) -> float:
    """gᵀHg/‖g‖² by a central difference of gradients."""
    twin, (x, y) = copy.deepcopy(model).double().eval(), part

    def gradient(at: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(at, twin.parameters())
        return flat_of(torch.autograd.grad(F.cross_entropy(twin(x.double()), y), [*twin.parameters()]))

    g = gradient(weights)
    v = 1e-5 * g / g.norm()
    return (v @ (gradient(weights + v) - gradient(weights - v)) / (2 * v @ v)).item()


def flat_of(tensors: Any) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def test_row_t_is_of_the_weights_and_the_update_of_step_t(tmp_path: Path) -> None:
    """In float64 by hand: a dense Hessian, differences of gradients, and the loss at both ends of the bracket."""
    model = net()
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    seen: dict[int, tuple[nn.Module, Tensor, Tensor]] = {}
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe(model)]) as rec:
        for step in range(4):
            x, y = batch(1000)  # along which the loss on it does fall
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            twin, before = copy.deepcopy(model), flat(model)
            optimizer.step()
            seen[step] = twin, before, flat(model) - before
            rec.log(loss=loss, samples=len(x))
    rows = tvlars_probe.open_run(rec.path).curvature()
    assert sorted({*rows.step}) == [0, 2]
    for step in (0, 2):
        twin, before, delta = seen[step]
        found = rows[rows.step == step].set_index("measure")
        x, y = batch(1000)
        matrix = dense_hessian(copy.deepcopy(twin).double().eval(), F.cross_entropy, x.double(), y)
        expected = (delta @ matrix @ delta / (delta @ delta)).item()
        assert found.value["directional_sharpness"] == pytest.approx(expected, rel=1e-3)
        value, error = found.value["critical_sharpness"], found.error["critical_sharpness"]
        for figure, rises in ((value - error, True), (value + error, False)):
            c = 2 / (figure * 0.1)
            assert bool(loss_of(twin, before + c * delta) > loss_of(twin, before)) is rises
        quotients = [along_gradient(twin, before, part) for part in disjoint([batch(1000)], 4, seed=0)]
        assert found.value["batch_sharpness"] == pytest.approx(sum(quotients) / 4, rel=1e-3)
        assert found.loss["critical_sharpness"] == pytest.approx(loss_of(twin, before).item(), rel=1e-5)
    assert rows.groupby("step").measurement_id.nunique().tolist() == [1, 1]


@pytest.mark.parametrize("name", ["lars", "tvlars", "lamb", "sgd-momentum", "adamw"])
def test_a_run_with_it_is_bit_identical_to_one_without(tmp_path: Path, name: str) -> None:
    weights, streams = [], []
    for probed in (False, True):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        places = [p.data_ptr() for p in model.parameters()]
        probes = [probe(model, every=1, bn_mode="train")] * probed
        with tvlars_probe.record(model, optimizer, tmp_path / f"{probed}", probes=probes) as rec:
            loop(model, optimizer, range(6), rec)
        weights.append([*model.state_dict().values()])
        streams.append(torch.rand(3))
        assert [p.data_ptr() for p in model.parameters()] == places
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert torch.equal(*streams)
    both = [tvlars_probe.open_run(tmp_path / f"{probed}").layers() for probed in (False, True)]
    assert (both[0].update_norm == both[1].update_norm).all()
    rows = tvlars_probe.open_run(tmp_path / "True").curvature()
    assert rows[rows.measure == "directional_sharpness"].step.tolist() == [*range(6)]


def test_its_time_is_the_probes_and_no_steps_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own, that only the measurement of the update moves."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    class Slow(tvlars_probe.SharpnessProbe):
        def measure_update(self, *args: Any) -> Any:
            nonlocal now
            now += 7.0
            return super().measure_update(*args)

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    slow = Slow(model, F.cross_entropy, batch(1000), every=2, measures=("critical",))
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[slow]) as rec:
        loop(model, optimizer, range(4), rec)
    steps = tvlars_probe.open_run(rec.path).steps()
    assert steps.probe_seconds.tolist() == [7.0, 0.0, 7.0, 0.0]
    assert steps.step_seconds.tolist() == [0.0] * 4


def test_of_two_optimizers_the_update_is_both_of_theirs(tmp_path: Path) -> None:
    model = net()
    parts = [[*model[0].parameters()], [*model[1:].parameters()]]
    optimizers = [torch.optim.SGD(parts[0], 0.1), torch.optim.SGD(parts[1], 0.2)]
    one = torch.optim.SGD([{"params": parts[0], "lr": 0.1}, {"params": parts[1], "lr": 0.2}])
    found = []
    for given in (optimizers, [one]):
        model.load_state_dict(net().state_dict())
        asked = probe(model, every=1, measures=("directional", "critical"))
        with tvlars_probe.record(model, given, tmp_path / f"{len(given)}", probes=[asked]) as rec:
            for step in range(2):
                x, y = batch(step)
                model.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                for optimizer in given:
                    optimizer.step()
                rec.log(loss=loss)
        found.append(tvlars_probe.open_run(rec.path).curvature().value.tolist())
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_steps_in_which_not_all_optimizers_step_have_no_row(tmp_path: Path) -> None:
    model = net()
    parts = [model[0].parameters(), model[1:].parameters()]
    optimizers = [torch.optim.SGD(part, 0.1) for part in parts]
    asked = probe(model, every=1, measures=("critical",))
    with tvlars_probe.record(model, optimizers, tmp_path / "run", probes=[asked]) as rec:
        for step in range(3):
            x, y = batch(step)
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            for optimizer in optimizers[: 1 + (step == 1)]:
                optimizer.step()
            rec.log(loss=loss)
    assert tvlars_probe.open_run(rec.path).curvature().step.tolist() == [1]


def test_the_weights_of_an_update_that_was_never_whole_are_let_go(tmp_path: Path) -> None:
    model = net()
    optimizers = [torch.optim.SGD(part, 0.1) for part in (model[0].parameters(), model[1:].parameters())]
    asked = probe(model, every=2, measures=("critical",))
    held = []
    with tvlars_probe.record(model, optimizers, tmp_path / "run", probes=[asked]) as rec:
        for step in range(4):
            x, y = batch(step)
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizers[step % 2].step()
            held.append(len(asked._weights))
            rec.log()
    assert held == [6, 0, 6, 0]


def test_a_failure_after_the_update_ends_the_probing_with_a_note(tmp_path: Path) -> None:
    class Broken(tvlars_probe.SharpnessProbe):
        def measure_update(self, step: int, phase: str, lr: float) -> Any:
            raise ArithmeticError("no such luck")

    model, twin = net(), net()
    broken = Broken(model, F.cross_entropy, batch(1000), every=2, measures=("critical",))
    optimizer, other = (OPTIMIZERS["sgd"](m.parameters()) for m in (model, twin))
    with (
        pytest.warns(RuntimeWarning, match="Broken failed at step 0: ArithmeticError: no such luck"),
        tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[broken]) as rec,
    ):
        loop(model, optimizer, range(4), rec)
    loop(twin, other, range(4))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    run = tvlars_probe.open_run(rec.path)
    assert "no such luck" in run.manifest.notes[0]
    assert len(run.steps()) == 4


def test_a_loss_that_is_not_finite_leaves_no_row(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model[-1].bias.fill_(float("inf"))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    asked = probe(model, every=1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[asked]) as rec:
        loop(model, optimizer, range(2), rec)
    assert tvlars_probe.open_run(rec.path).curvature().empty


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"measures": ("trace",)}, "unknown measure 'trace'"),
        ({"measures": ()}, "a probe of nothing"),
        ({"batch_size": None}, "needs batch_size"),
        ({"batch_size": 17}, "needs a mini-batch of 17 samples, and the probe's sample has 16"),
    ],
    ids=["unknown", "none", "no batch size", "too large a batch"],
)
def test_what_cannot_be_measured_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        probe(net(), **options)


def rows_of_rank(rank: int, world_size: int, folder: str) -> list[list[float]]:
    model = net().double().eval()  # running statistics, which differ from rank to rank in training, are left alone
    trained = DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x, y = (part.tensor_split([10])[rank] if world_size > 1 else part for part in batch(1000))
    asked = tvlars_probe.SharpnessProbe(
        model, F.cross_entropy, (x.double(), y), every=1, measures=MEASURES, batch_size=3, bn_mode="eval", tol=1e-8
    )
    with tvlars_probe.record(trained, optimizer, f"{folder}/run-{world_size}", probes=[asked]) as rec:
        for _ in range(3):
            x, y = (part.chunk(world_size)[rank] for part in batch(1000))
            optimizer.zero_grad()
            loss = F.cross_entropy(trained(x.double()), y)
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=len(x))
    if rank:
        return []
    rows = tvlars_probe.open_run(rec.path).curvature()
    return [rows.value.tolist(), rows.error.fillna(0).tolist(), rows.step.tolist()]


def test_two_ranks_have_the_rows_of_one(tmp_path: Path) -> None:
    expected = rows_of_rank(0, 1, str(tmp_path))
    found = on_ranks(rows_of_rank, 2, tmp_path, str(tmp_path))[0]
    assert len(found[0]) == 12
    assert found[2] == expected[2]
    for a, b in zip(found[0], expected[0], strict=True):
        assert a == pytest.approx(b, rel=1e-7)
