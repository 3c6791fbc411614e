"""Recorded steps on an accelerator: the host never waits, and the rows are those of the CPU."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import tvlars_probe
from tests.gpu.networks import ALL, OURS, batch, network, train
from tvlars_probe.spectral_norms import spectral_norms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Any call that makes the host wait for the device raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("detail", ["norms", "full"])
@pytest.mark.parametrize("name", list(ALL))
def test_the_host_never_waits_in_a_recorded_step(name: str, detail: Any, device: torch.device, tmp_path: Path) -> None:
    model = network(device)
    optimizer, data = ALL[name](model.parameters()), batch(device)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", detail=detail) as rec:
        train(rec, model, optimizer, data, steps=2)  # which allocate, and let kernels be compiled
        with no_waiting(device):
            train(rec, model, optimizer, data, steps=4)
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    assert rows["step"].max() == 5
    assert rows["grad_norm"].gt(0).all()


def test_noise_of_micro_batches_is_that_of_the_cpu_and_lets_no_step_wait(device: torch.device, tmp_path: Path) -> None:
    def accumulate(rec: Any, model: Any, optimizer: Any, data: Any, steps: int) -> None:
        inputs, labels = data
        for _ in range(steps):
            optimizer.zero_grad()
            for x, y in zip(inputs.chunk(4), labels.chunk(4), strict=True):
                (cross_entropy(model(x), y) / 4).backward()
            optimizer.step()
            rec.log(samples=len(inputs))

    found = []
    for place in (device, torch.device("cpu")):
        model = network(place, torch.float64)
        optimizer, (inputs, labels) = ALL["SGD"](model.parameters()), batch(place)
        data = inputs.double(), labels
        with tvlars_probe.record(model, optimizer, tmp_path / f"{place}-{len(found)}", noise=True) as rec:
            accumulate(rec, model, optimizer, data, 2)
            with no_waiting(place):
                accumulate(rec, model, optimizer, data, 4)
        found.append(tvlars_probe.open_run(rec.path).noise().set_index(["step", "scope"]).sort_index())
    assert {*found[0].index.get_level_values("step")} == {*range(6)}
    assert (found[0].pieces == 4).all()
    for column in ("gradient_square", "noise_trace"):
        np.testing.assert_allclose(found[0][column], found[1][column], rtol=1e-6, atol=1e-12)


def test_spectral_norms_are_within_their_errors_and_let_no_step_wait(device: torch.device, tmp_path: Path) -> None:
    shapes = ((300, 200), (90, 400), (40, 30), (80, 10, 3, 3))
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    there = [matrix.to(device) for matrix in matrices]
    spectral_norms(there, range(4), minus=[torch.zeros_like(m) for m in there])  # which loads the kernels
    with no_waiting(device):
        found = spectral_norms(there, range(4), minus=[torch.zeros_like(m) for m in there])
    for matrix, (value, error) in zip(matrices, found.T.tolist(), strict=True):
        true = float(torch.linalg.matrix_norm(matrix.double().flatten(1), ord=2))
        assert abs(true - value) <= error <= 0.05 * true
    model = network(device)
    optimizer, data = OURS["LARS"](model.parameters()), batch(device)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", spectral_every=1) as rec:
        train(rec, model, optimizer, data, steps=2)
        with no_waiting(device):
            train(rec, model, optimizer, data, steps=4)
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    assert rows.dropna(subset=["weight_spectral_norm", "update_spectral_norm"])["step"].nunique() == 6


def trained(name: str, device: torch.device, path: Path) -> Any:
    model = network(device, torch.float64)
    optimizer = ALL[name](model.parameters())
    with tvlars_probe.record(model, optimizer, path) as rec:
        train(rec, model, optimizer, batch(device, torch.float64), steps=8)
    return tvlars_probe.open_run(path)


@pytest.mark.parametrize("name", list(ALL))
def test_rows_are_those_of_the_cpu(name: str, device: torch.device, tmp_path: Path) -> None:
    here, there = trained(name, torch.device("cpu"), tmp_path / "cpu"), trained(name, device, tmp_path / "device")
    for table in ("layers", "steps"):
        a, b = (run.frame(table) for run in (here, there))
        assert len(a) == len(b) > 0
        for column in a.columns:
            if a[column].dtype.kind == "f" and not column.endswith("seconds"):
                np.testing.assert_allclose(b[column], a[column], rtol=2e-5, err_msg=column)


@pytest.mark.parametrize("name", list(OURS))
def test_a_scaler_skips_and_rows_are_unscaled(name: str, device: torch.device, tmp_path: Path) -> None:
    """float16 under autocast: an overflow leaves no row of an update, and ‖g‖ is without the loss's scale."""
    model, (x, y) = network(device), batch(device)
    optimizer = OURS[name](model.parameters())
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    norms = []
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        for step in range(4):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16):
                loss = cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            first = next(model.parameters())
            assert first.grad is not None
            if step == 2:
                first.grad.fill_(torch.inf)
            scaler.unscale_(optimizer)
            if step != 2:
                norms.append(first.grad.norm().item())
            scaler.step(optimizer)
            scaler.update()
            rec.log(loss=loss, samples=len(x), epoch=0)
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    rows = rows[rows["parameter"] == "0.weight"]
    np.testing.assert_allclose(rows["grad_norm"], norms, rtol=1e-4)


def test_weights_of_bfloat16_are_recorded(device: torch.device, tmp_path: Path) -> None:
    model = network(device, torch.bfloat16)
    optimizer, (x, y) = OURS["LARS"](model.parameters()), batch(device, torch.bfloat16)
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        cross_entropy(model(x), y).backward()
        norms = [p.double().norm().item() for p in model.parameters()]
        optimizer.step()
        rec.log(loss=1.0)
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    np.testing.assert_allclose(rows["weight_norm"], norms, rtol=1e-5)
