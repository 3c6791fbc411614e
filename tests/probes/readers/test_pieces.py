"""The reader of pieces on gradients of unusual forms, and where reading fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tvlars_probe
from tests.oracles.noise import of_pieces
from tvlars_probe.errors import ProbeError
from tvlars_probe.probes.readers.gradient_figures import GradientFigures
from tvlars_probe.probes.readers.pieces import Told

if TYPE_CHECKING:
    from pathlib import Path


def noise(path: Path) -> Any:
    return tvlars_probe.open_run(path).noise().set_index(["step", "scope"])


def test_gradients_in_another_memory_layout(tmp_path: Path) -> None:
    """The check sum goes by the logical place of an element, whatever the layout of a piece's gradient or the sum."""
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double().to(memory_format=torch.channels_last)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pieces = torch.randn(4, 2, 3, 8, 8, dtype=torch.float64)
    grads = [torch.autograd.grad(model(x).square().mean(), [*model.parameters()]) for x in pieces]
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for k, x in enumerate(pieces):
            form = torch.channels_last if k % 2 else torch.contiguous_format
            (model(x.contiguous(memory_format=form)).square().mean() / 4).backward()
        optimizer.step()
        rec.log(samples=8)
    found = noise(tmp_path / "r")
    for (name, _), *of_tensor in zip(model.named_parameters(), *grads, strict=True):
        signal, trace = of_pieces(of_tensor, [2] * 4)
        assert found.loc[0, name].noise_trace == pytest.approx(trace, rel=1e-9)
        assert found.loc[0, name].gradient_square == pytest.approx(signal, rel=1e-9, abs=1e-12)


def test_sparse_gradients_are_read_as_the_dense_ones(tmp_path: Path) -> None:
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(10, 3, sparse=sparse), nn.Linear(3, 1)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tvlars_probe.record(model, optimizer, tmp_path / str(sparse), noise=True) as rec:
            for k in range(4):
                (model(torch.tensor([k, k, k + 1, k + 2])).square().mean() / 4).backward()
            optimizer.step()
            rec.log(samples=16)
    dense, found = (noise(tmp_path / str(sparse)).loc[0] for sparse in (False, True))
    assert {*found.index} == {"0.weight", "1.weight", "1.bias", "all"}
    for column in ("gradient_square", "noise_trace"):
        assert found[column].to_dict() == pytest.approx(dense[column].to_dict(), rel=1e-9)


def test_sizes_and_weights_may_be_tensors_on_a_device(tmp_path: Path) -> None:
    """As numbers of tokens are, for which the host doesn't wait: here of the CPU, past the check that reads them."""
    for name in ("numbers", "tensors"):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tvlars_probe.record(model, optimizer, tmp_path / name, noise=True) as rec:
            for size in (2, 5, 3):
                told: dict[str, Any] = {"size": size, "weight": float(size)}
                if name == "tensors":
                    told = {key: torch.tensor(value) for key, value in told.items()}
                rec._recording.rows.pieces.tell(Told(**told, of_tokens=True))
                (model(torch.randn(size, 3, dtype=torch.float64)).square().mean() * size / 10).backward()
            optimizer.step()
            rec.log(samples=3)
    numbers, tensors = (noise(tmp_path / name).drop(columns="run") for name in ("numbers", "tensors"))
    assert len(numbers) == 3
    assert (numbers.unit == "tokens").all()
    assert tensors.equals(numbers)


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(grad: Any) -> float:
        raise ZeroDivisionError("in a hook")

    monkeypatch.setattr(GradientFigures, "square", staticmethod(raises))


def train(path: Path, **settings: Any) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, path, noise=True, **settings) as rec:
        for _ in range(2):
            for _ in range(2):
                model(torch.ones(3, 2)).sum().backward()
            optimizer.step()
            rec.log(samples=6)


def test_a_hook_that_fails_ends_no_backward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError: in a hook; layers and curvature are not recorded"):
        train(tmp_path / "r")
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.status == "completed"
    assert len(run.steps()) == 2
    assert not len(run.noise())


def test_under_raise_it_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    with pytest.raises(ProbeError, match="in a hook"):
        train(tmp_path / "r", on_probe_error="raise")
