"""Which parameters are recorded, and by which name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tvlars_probe import LARS
from tvlars_probe.probes.readers.parameters import ParameterInfo
from tvlars_probe.traces.manifest_entries import ParameterEntry

if TYPE_CHECKING:
    from pathlib import Path


def test_two_optimizers_make_one_step(tmp_path: Path) -> None:
    model = net()
    slow, fast = OPTIMIZERS["lars"](model[:2].parameters()), OPTIMIZERS["sgd"](model[4].parameters())
    with tvlars_probe.record(model, [slow, fast], tmp_path / "r") as rec:
        for step in range(3):
            x, y = batch(step)
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            slow.step()
            fast.step()
            rec.log(loss=loss, samples=16)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["samples"].tolist() == [16, 32, 48]
    frame = run.layers().set_index(["step", "parameter"])
    assert len(frame) == 3 * 6
    assert frame.loc[(2, "0.weight"), "lr"] == 0.5
    assert frame.loc[(2, "4.weight"), "lr"] == pytest.approx(0.1)
    table = run.parameters().set_index("name")
    assert table.loc["0.weight", ["optimizer", "adapted"]].tolist() == [0, True]
    assert table.loc["4.weight", ["optimizer", "adapted"]].tolist() == [1, False]


def test_a_layer_frozen_and_unfrozen_later(tmp_path: Path) -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        model[0].requires_grad_(True)
        loop(model, optimizer, range(2, 4), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    counts = run.layers().groupby("step")["parameter"].apply(lambda p: sorted(p.astype(str)))
    assert counts[1] == ["1.bias", "1.weight", "4.bias", "4.weight"]
    assert counts[2] == ["0.bias", "0.weight", "1.bias", "1.weight", "4.bias", "4.weight"]
    assert run.parameters()["trainable"].all()


def test_a_group_added_later_is_followed(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["tvlars"](model[4].parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.125})
        loop(model, optimizer, range(2, 4), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.layers().groupby("step").size().tolist() == [2, 2, 4, 4]
    frame = run.layers().set_index(["step", "parameter"])
    assert frame.loc[(3, "0.weight"), "lr"] == 0.125
    assert len(run.manifest.groups) == 2


def test_readers_know_each_field_of_a_parameter() -> None:
    assert ParameterEntry.__annotations__.keys() == {field.name for field in dataclasses.fields(ParameterInfo)}


def test_tied_weights_and_wrappers_and_strangers(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(x)))  # type: ignore[no-any-return]

    model, scale = Tied(), nn.Parameter(torch.ones(()))
    wrapped = nn.DataParallel(model)
    optimizer = LARS([{"params": model.parameters()}, {"params": [scale]}], 0.1)
    with tvlars_probe.record(wrapped, optimizer, tmp_path / "r") as rec:
        loss = F.cross_entropy(model(torch.tensor([1, 2])) * scale, torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        rec.log(loss=loss)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.layers()["parameter"].tolist() == ["embed.weight", "norm.weight", "norm.bias", "optimizer0.group1.0"]
    table = run.parameters().set_index("name")
    assert table.loc["embed.weight", "aliases"] == ["head.weight"]
    assert table["kind"].to_dict() == {
        "embed.weight": "other", "norm.weight": "norm", "norm.bias": "norm", "optimizer0.group1.0": "other",
    }  # fmt: skip


def test_a_compiled_model_keeps_its_names(tmp_path: Path) -> None:
    model = net()
    model[4] = torch.compile(model[4], backend="eager")  # type: ignore[assignment]
    compiled = torch.compile(model, backend="eager")
    optimizer = OPTIMIZERS["lars"](compiled.parameters())
    with tvlars_probe.record(compiled, optimizer, tmp_path / "r") as rec:
        loop(compiled, optimizer, range(2), rec)
    names = tvlars_probe.open_run(tmp_path / "r").layers()["parameter"].unique().tolist()
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]


def test_parameters_that_are_exchanged_keep_their_own_names(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD([model[0].weight], lr=0.0)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
        optimizer.param_groups[0]["params"] = [model[4].weight]
        loop(model, optimizer, range(2, 4), rec)
    rows = tvlars_probe.open_run(tmp_path / "run").layers()
    assert rows.parameter.tolist() == ["0.weight"] * 2 + ["4.weight"] * 2
    assert rows.weight_norm.iloc[2] == pytest.approx(model[4].weight.norm().item(), rel=1e-6)
