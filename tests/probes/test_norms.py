from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tvlars_probe
from tests.probes.test_recorder import OPTIMIZERS, loop, net
from tvlars_probe.probes import norms
from tvlars_probe.traces.schema import LAYERS

if TYPE_CHECKING:
    from pathlib import Path


class CountReads(TorchDispatchMode):
    """Counts what would make the host wait for an accelerator."""

    reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["lars", "sgd-momentum", "adamw"])
def test_the_path_of_an_accelerator_gives_the_figures_of_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    frames = []
    for on_device in (False, True):
        monkeypatch.setattr(norms, "reads_are_free", lambda device, free=not on_device: free)
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / f"{on_device}") as rec:
            loop(model, optimizer, range(4), rec)
        frames.append(tvlars_probe.open_run(rec.path).layers())
    for column in LAYERS.of_type("float32"):
        one, other = (torch.tensor(frame[column].to_numpy()) for frame in frames)
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("name", ["lars", "sgd", "sgd-momentum", "adamw"])
def test_a_recorded_step_on_an_accelerator_never_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its path driven with CPU tensors; what the optimizer itself reads is the same without the recorder."""
    monkeypatch.setattr(norms, "reads_are_free", lambda device: False)
    reads = []
    for recorded in (False, True):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        for group in optimizer.param_groups:
            group["foreach"] = True
        if recorded:
            rec = tvlars_probe.record(model, optimizer, tmp_path / "run")
            rec.__enter__()
        loop(model, optimizer, range(2), rec if recorded else None)
        with CountReads() as count:
            optimizer.step()
            if recorded:
                rec.log(loss=1.0, samples=4, epoch=0)
        reads.append(count.reads)
        if recorded:
            rec.__exit__(None, None, None)
    assert reads[0] == reads[1]
    if name == "lars":
        assert reads[1] == 0


def test_a_sparse_momentum_buffer_is_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Embedding(20, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    moved = []
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        for step in range(3):
            before = model.weight.detach().double().clone()
            optimizer.zero_grad()
            model(torch.tensor([step, step + 1])).square().sum().backward()
            optimizer.step()
            rec.log()
            moved.append((model.weight.detach().double() - before).norm().item())
    assert tvlars_probe.open_run(rec.path).layers().update_norm.tolist() == pytest.approx(moved, rel=1e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_what_muon_made_of_a_rate_is_not_claimed(tmp_path: Path) -> None:
    model = nn.Linear(6, 4, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        model(torch.randn(3, 6)).sum().backward()
        optimizer.step()
        rec.log()
    assert tvlars_probe.open_run(rec.path).layers().trust_ratio.isna().all()
