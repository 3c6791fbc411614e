from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import nn

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, UNKNOWN, loop, net, observed
from tests.reads import CountReads
from tvlars_probe.probes.readers import norms
from tvlars_probe.traces.schema import LAYERS

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe import Run


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


class Clearing(torch.optim.SGD):
    """Ends each step by clearing the gradients, as some trainers have it."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        made = super().step(closure)
        self.zero_grad()
        return made


def test_a_step_that_clears_the_gradients_is_recorded(tmp_path: Path) -> None:
    model = net()
    optimizer = Clearing(model.parameters(), lr=0.1)
    with (
        pytest.warns(UserWarning, match="what Clearing does"),
        tvlars_probe.record(model, optimizer, tmp_path / "run") as rec,
    ):
        loop(model, optimizer, range(2), rec)
    rows = tvlars_probe.open_run(rec.path).layers()
    assert len(rows) == 2 * len([*model.parameters()])
    assert rows[["weight_norm", "grad_norm", "update_norm"]].notna().all(axis=None)


def test_a_rate_of_numpys_is_a_rate(tmp_path: Path) -> None:
    model = nn.Linear(4, 3, bias=False)
    optimizer = timm.optim.Lars(model.parameters(), lr=np.float32(0.5), weight_decay=0.1, trust_clip=True)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        rec.log()
    (row,) = tvlars_probe.open_run(rec.path).layers().itertuples()
    assert row.update_norm == pytest.approx(0.5 * row.trust_ratio * row.direction_norm, rel=0.05)


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
@pytest.mark.parametrize(
    ("adjust", "rows", "factor"),
    [
        (None, 10, (10 / 4) ** 0.5),
        ("original", 10, (10 / 4) ** 0.5),
        ("original", 2, 1.0),
        ("match_rms_adamw", 10, 0.2 * 10**0.5),
        ("match_rms_adamw", 2, 0.2 * 4**0.5),
        ("spectral_unclamped", 2, (2 / 4) ** 0.5),
    ],
)
def test_the_trust_ratio_of_muon_is_its_factor_of_the_shape(
    adjust: str | None, rows: int, factor: float, tmp_path: Path
) -> None:
    model = nn.Linear(4, rows, bias=False)
    try:
        optimizer = torch.optim.Muon(model.parameters(), lr=0.1, adjust_lr_fn=adjust)
    except ValueError:
        pytest.skip("this torch's Muon has no such factor")
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        rec.log()
    assert tvlars_probe.open_run(rec.path).layers().trust_ratio.tolist() == pytest.approx([factor])


def assert_observed(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    """The rows are those that the same loop, made by hand, shows in float64."""
    frame = run.layers().set_index(["step", "parameter"])
    for step in range(steps):
        for parameter, figures in observed(model, optimizer, step).items():
            row = frame.loc[(step, parameter)]
            for column, value in figures.items():
                assert row[column] == pytest.approx(value, rel=3e-5, abs=1e-7), (step, parameter, column)
            assert row["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_recorded_is_what_happened(name: str, tmp_path: Path) -> None:
    recorded, watched = net(), net()
    optimizer, other = OPTIMIZERS[name](recorded.parameters()), OPTIMIZERS[name](watched.parameters())
    with tvlars_probe.record(recorded, optimizer, tmp_path / "r") as rec:
        loop(recorded, optimizer, range(4), rec)
    assert_observed(tvlars_probe.open_run(tmp_path / "r"), watched, other, steps=4)


@pytest.mark.parametrize("name", UNKNOWN)
def test_of_an_unknown_optimizer_norms_are_recorded_and_nothing_is_assumed(name: str, tmp_path: Path) -> None:
    recorded, watched = net(), net()
    optimizer, other = UNKNOWN[name](recorded.parameters()), UNKNOWN[name](watched.parameters())
    kind = type(optimizer).__name__
    with (
        pytest.warns(UserWarning, match=rf"what {kind} does .* tvlars_probe.describe.register\({kind}\)") as told,
        tvlars_probe.record(recorded, optimizer, tmp_path / "r") as rec,
    ):
        loop(recorded, optimizer, range(4), rec)
    assert len(told) == 1
    run = tvlars_probe.open_run(tmp_path / "r")
    assert_observed(run, watched, other, steps=4)
    assert run.layers()[["trust_ratio", "direction_norm", "adam_norm", "phi"]].isna().all(axis=None)
    assert run.parameters()[["adapted", "decayed"]].isna().all(axis=None)
    assert all(rate != rate for rate in rec.last_rates().values())
    assert [note for note in run.manifest.notes if f"tvlars_probe.describe.register({kind})" in note]


def test_trust_ratio_is_what_is_known_of_it(tmp_path: Path) -> None:
    ratios = {}
    for name in ("lars", "sgd"):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / name) as rec:
            loop(model, optimizer, range(1), rec)
        ratios[name] = tvlars_probe.open_run(tmp_path / name).layers().set_index("parameter")["trust_ratio"]
    assert ratios["lars"]["1.weight"] == ratios["lars"]["4.bias"] == 1.0  # excluded
    assert 0 < ratios["lars"]["0.weight"] < 1
    assert (ratios["sgd"] == 1).all()


def test_columns_that_an_optimizer_lacks_are_null(tmp_path: Path) -> None:
    filled = {}
    for name in ("lars", "tvlars", "lamb", "sgd"):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / name) as rec:
            loop(model, optimizer, range(2), rec)
        frame = tvlars_probe.open_run(tmp_path / name).layers()
        filled[name] = {c for c in ("direction_norm", "adam_norm", "weight_adam_dot", "phi") if frame[c].notna().all()}
        assert all(frame[c].isna().all() for c in {"direction_norm", "adam_norm", "phi"} - filled[name])
    assert filled == {
        "lars": {"direction_norm"},
        "tvlars": {"direction_norm", "phi"},
        "lamb": {"direction_norm", "adam_norm", "weight_adam_dot"},
        "sgd": set(),
    }


def test_update_norm_in_bfloat16_is_of_the_update_that_was_applied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 64).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    before = model.weight.detach().double().clone()
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loss = model(torch.randn(8, 64, dtype=torch.bfloat16)).square().mean()
        loss.backward()
        optimizer.step()
        rec.log(loss=loss)
    rows = tvlars_probe.open_run(tmp_path / "run").layers().set_index("parameter")
    applied = (model.weight.detach().double() - before).norm().item()
    assert rows.update_norm["weight"] == pytest.approx(applied, rel=1e-3)


def test_a_foreign_attribute_called_last_step_is_not_believed(tmp_path: Path) -> None:
    class Counting(torch.optim.SGD):
        last_step = 0

    model = net()
    optimizer = Counting(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
    assert tvlars_probe.open_run(tmp_path / "run").layers().weight_norm.notna().all()


def test_sparse_gradients_and_complex_weights_are_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(10, 4, sparse=True)
    phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    optimizers = [torch.optim.SGD(table.parameters(), lr=0.1), torch.optim.Adam([phase], lr=0.1)]
    weight, value = table.weight.detach().clone(), phase.detach().clone()
    with tvlars_probe.record(table, optimizers, tmp_path / "run") as rec:
        loss = table(torch.tensor([1, 1, 3])).sum() + phase.abs().square().sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        rec.log(loss=loss)
    rows = tvlars_probe.open_run(tmp_path / "run").layers().set_index("parameter")
    assert rows.grad_norm["weight"] == pytest.approx((4 * 4 + 4) ** 0.5)
    assert rows.weight_norm["optimizer1.group0.0"] == pytest.approx(value.abs().norm().item())
    assert rows.update_norm["weight"] == pytest.approx((table.weight - weight).norm().item(), rel=1e-5)


def test_of_a_large_model_the_copies_that_update_norm_needs_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "SNAPSHOT_ELEMENTS", 3)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    applied = {}
    with tvlars_probe.record(model, optimizer, tmp_path / "r", every=2) as rec:
        for step in range(41):
            before = model.weight.detach().clone()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            applied[step] = (model.weight.detach() - before).norm().item()
            assert not rec._recording.rows.layout.readers[0]._snapshots
    rows = tvlars_probe.open_run(tmp_path / "r").layers(["step", "weight_norm", "update_norm"], parameters=["weight"])
    assert rows.weight_norm.notna().all()
    read = rows[rows.update_norm.notna()]
    assert read.step.tolist() == [0, 20, 40]
    assert read.update_norm.tolist() == pytest.approx([applied[step] for step in (0, 20, 40)], rel=1e-5)


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 1e200), (torch.float64, 1e-200), (torch.float32, 1e25)])
def test_the_buffer_of_momentum_is_measured_where_its_squares_are_out_of_range(
    dtype: torch.dtype, scale: float, on_device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "reads_are_free", lambda device: not on_device)
    p = nn.Parameter(torch.zeros(50, dtype=dtype))
    p.grad = torch.linspace(-1, 1, 50, dtype=torch.float64).mul(scale).to(dtype)
    optimizer = torch.optim.SGD([p], lr=1 / scale, momentum=0.9)
    with tvlars_probe.record(None, optimizer, tmp_path / "run") as rec:
        optimizer.step()
        rec.log()
    assert tvlars_probe.open_run(rec.path).layers().update_norm.item() == pytest.approx(p.detach().norm().item())
