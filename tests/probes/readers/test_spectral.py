"""Spectral norms in the table of layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tests.reads import CountReads
from tvlars_probe.errors import UserError
from tvlars_probe.probes.readers import norms
from tvlars_probe.probes.readers.columns import SPECTRAL
from tvlars_probe.probes.readers.spectral import SpectralReader

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

MATRICES = {"0.weight", "4.weight"}


def wide(seed: int = 0) -> nn.Sequential:
    """With a matrix for Lanczos, beside those whose Gram matrix is squared."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 96))


def recorded(folder: Path, steps: int = 5, optimizer: str = "adamw", model: nn.Module | None = None, **how: Any) -> Any:
    model = wide() if model is None else model
    made = OPTIMIZERS[optimizer](model.parameters())
    with tvlars_probe.record(model, made, folder, **{"spectral_every": 2, **how}) as rec:
        loop(model, made, range(steps), rec)
    return tvlars_probe.open_run(rec.path)


def spectral(run: Any) -> pd.DataFrame:
    frame: pd.DataFrame = run.layers(columns=["step", "parameter", *SPECTRAL])
    return frame.dropna(subset=["weight_spectral_norm"]).set_index(["step", "parameter"])


def true_norm(tensor: Tensor) -> float:
    return float(torch.linalg.matrix_norm(tensor.double().flatten(1), ord=2))


@pytest.mark.parametrize("optimizer", ["lars", "lamb", "sgd", "sgd-momentum", "adamw"])
def test_figures_are_those_of_weights_and_updates(tmp_path: Path, optimizer: str) -> None:
    model = wide()
    made = OPTIMIZERS[optimizer](model.parameters())
    truths = {}
    with tvlars_probe.record(model, made, tmp_path / "r", spectral_every=2) as rec:
        for step in range(5):
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            loop(model, made, range(step, step + 1), rec)
            truths[step] = {
                n: (true_norm(before[n]), true_norm(p.detach().double() - before[n].double()))
                for n, p in model.named_parameters()
                if p.ndim > 1
            }
    found = spectral(tvlars_probe.open_run(rec.path))
    assert {*found.index} == {(step, name) for step in (0, 2, 4) for name in MATRICES}
    for (step, name), row in found.iterrows():
        weight, update = truths[step][name]
        assert abs(weight - row["weight_spectral_norm"]) <= row["weight_spectral_norm_error"] <= 0.05 * weight
        assert abs(update - row["update_spectral_norm"]) <= row["update_spectral_norm_error"] <= 0.05 * update


def test_only_recorded_steps_have_them(tmp_path: Path) -> None:
    run = recorded(tmp_path / "r", 13, every=3, spectral_every=6)
    assert [*dict.fromkeys(run.layers()["step"])] == [0, 3, 6, 9, 12]
    assert [*dict.fromkeys(step for step, _ in spectral(run).index)] == [0, 6, 12]


def test_what_is_not_asked_for_is_null(tmp_path: Path) -> None:
    assert recorded(tmp_path / "never", spectral_every=None).layers()[list(SPECTRAL)].isna().all(axis=None)
    without_updates = recorded(tmp_path / "norms", detail="norms").layers()
    assert without_updates["weight_spectral_norm"].notna().any()
    assert without_updates[["update_spectral_norm", "update_spectral_norm_error"]].isna().all(axis=None)


def test_without_updates_no_copy_is_taken() -> None:
    model = wide()
    made = OPTIMIZERS["lars"](model.parameters())
    for updates in (False, True):
        reader = SpectralReader(made, [str(i) for i in range(6)], updates=updates)
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        reader.before(0)
        assert bool(reader._copies) == updates
        assert reader.after(0)[1] == [updates and p.ndim > 1 for p in model.parameters()]
        assert not reader._copies
        reader.before(1)
        assert not any(reader.after(2)[1])  # what an update that raised left behind


def test_frozen_tensors_have_none_until_they_are_trained(tmp_path: Path) -> None:
    model = wide()
    model[0].requires_grad_(requires_grad=False)
    made = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, made, tmp_path / "r", spectral_every=1) as rec:
        loop(model, made, range(1), rec)
        model[0].requires_grad_()
        loop(model, made, range(1, 2), rec)
    assert {*spectral(tvlars_probe.open_run(rec.path)).index} == {(0, "4.weight"), (1, "0.weight"), (1, "4.weight")}


def test_several_optimizers_each_have_their_own(tmp_path: Path) -> None:
    model = wide()
    both = [OPTIMIZERS["sgd"](model[4].parameters()), OPTIMIZERS["lars"](model[0].parameters())]
    with tvlars_probe.record(model, both, tmp_path / "r", spectral_every=1) as rec:
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        x, y = batch(0)
        F.cross_entropy(model(x), y).backward()
        for one in both:
            one.step()
        rec.log()
    found = spectral(tvlars_probe.open_run(rec.path))
    for name, p in model.named_parameters():
        if p.ndim > 1:
            row = found.loc[(0, name)]
            assert abs(true_norm(before[name]) - row["weight_spectral_norm"]) <= row["weight_spectral_norm_error"]
            update = true_norm(p.detach().double() - before[name].double())
            assert abs(update - row["update_spectral_norm"]) <= row["update_spectral_norm_error"]


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_finite_have_nan_and_not_null(tmp_path: Path) -> None:
    model = wide()
    with torch.no_grad():
        model[4].weight[3, 4] = torch.inf
    run = recorded(tmp_path / "r", 1, model=model)
    rows = run.batches("layers", ["parameter", *SPECTRAL], lambda found: [row for b in found for row in b.to_pylist()])
    told = {row.pop("parameter"): row for row in rows}
    assert all(math.isnan(value) for value in told["4.weight"].values())
    assert all(value is None for value in told["4.bias"].values())


def test_a_run_that_goes_on_has_the_figures_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole = spectral(recorded(tmp_path / "whole", 6))
    model = wide()
    made = OPTIMIZERS["adamw"](model.parameters())
    with tvlars_probe.record(model, made, tmp_path / "r", spectral_every=2) as rec:
        loop(model, made, range(3), rec)
        state = rec.state_dict()
    with tvlars_probe.record(model, made, tmp_path / "r", spectral_every=2, resume=state) as rec:
        loop(model, made, range(3, 6), rec)
    assert spectral(tvlars_probe.open_run(rec.path)).equals(whole)


@pytest.mark.parametrize("optimizer", ["tvlars", "adamw"])
def test_a_training_that_is_measured_is_the_one_that_is_not(tmp_path: Path, optimizer: str) -> None:
    models = []
    for every in (None, 1):
        models.append(wide())
        torch.manual_seed(7)
        recorded(tmp_path / f"{every}", 4, optimizer, models[-1], spectral_every=every)
        models[-1].register_buffer("drawn", torch.rand(3))
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))


def test_a_step_never_makes_the_host_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of accelerators driven with CPU tensors."""
    monkeypatch.setattr(norms, "reads_are_free", lambda device: False)
    model = wide()
    made = torch.optim.SGD(model.parameters(), 0.1, foreach=True)
    with tvlars_probe.record(model, made, tmp_path / "r", spectral_every=1) as rec:
        loop(model, made, range(1), rec)
        with CountReads() as count:
            made.step()
    assert count.reads == 0


@pytest.mark.filterwarnings("ignore:what .* does to a rate")
def test_a_step_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    class Failing(torch.optim.SGD):
        """Raises in its first step."""

        fails = True

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                self.fails = False
                raise RuntimeError("no step")
            return super().step(closure)

    model = wide()
    made = Failing(model.parameters(), 0.1)
    with tvlars_probe.record(model, made, tmp_path / "r", spectral_every=1) as rec:
        with pytest.raises(RuntimeError, match="no step"):
            loop(model, made, range(1), rec)
        loop(model, made, range(1), rec)
    assert len(spectral(tvlars_probe.open_run(rec.path))) == 2


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"spectral_every": 0}, "spectral_every=0: give a number of steps, a whole one of 1 or more, or None"),
        ({"spectral_every": 2.5}, "spectral_every=2.5: give a number of steps"),
        ({"spectral_every": True}, "spectral_every=True: give a number of steps"),
        ({"spectral_every": 15, "every": 10}, "give a multiple of it"),
        ({"spectral_every": 10, "detail": "none"}, "needs the table layers, which detail='none' leaves out"),
    ],
)
def test_what_can_not_be_measured_is_refused(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    model = net()
    with pytest.raises(UserError, match=said):
        tvlars_probe.record(model, OPTIMIZERS["sgd"](model.parameters()), tmp_path / "r", **how)


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")  # torch 2.6, of every mesh of CPUs
def test_a_matrix_that_is_spread_over_ranks_is_refused_by_name(mesh_of_one: Any, tmp_path: Path) -> None:
    model = wide()
    model[4].weight = nn.Parameter(distribute_tensor(model[4].weight.detach(), mesh_of_one, [Shard(0)]))
    made = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UserError, match=r"spectral_every: 4.weight is a DTensor, of which no rank holds the whole"):
        tvlars_probe.record(model, made, tmp_path / "r", spectral_every=1)
    with pytest.raises(UserError, match=r"noise: 4.weight is a DTensor, as FSDP2 .* tvlars_probe.gradient_noise"):
        tvlars_probe.record(model, made, tmp_path / "r", noise=True)
    assert [*tmp_path.iterdir()] == []
