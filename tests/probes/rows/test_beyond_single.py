"""What isn't finite is found, and what only float32 can't hold isn't."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.commands.show import summary_lines
from tvlars_probe.probes.readers import norms
from tvlars_probe.traces.manifest import is_of_loss

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe import Run


def recorded(path: Path, scales: list[float], dtype: torch.dtype) -> tuple[Run, list[float]]:
    """A loop whose gradients are scaled so in its steps; the run, and the norm of all gradients in each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    applied = []
    with tvlars_probe.record(model, optimizer, path) as rec:
        for scale in scales:
            grads = []
            for p in model.parameters():
                p.grad = torch.linspace(-1, 1, p.numel(), dtype=torch.float64).mul(scale).to(dtype).view_as(p)
                grads += p.grad.flatten().tolist()
            applied.append(math.hypot(*grads))
            optimizer.step()
            rec.log(loss=1.0)
    return tvlars_probe.open_run(path), applied


EXTREME = [
    (torch.float64, 1e40), (torch.float64, 1e200), (torch.float64, 1e-60), (torch.float64, 1e-200),
    (torch.float32, 1e20), (torch.float32, 1e-30), (torch.bfloat16, 1e20), (torch.float16, 300.0),
    (torch.float16, 6e4), (torch.float16, 1e-5),
]  # fmt: skip


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize(("dtype", "scale"), EXTREME, ids=str)
def test_a_norm_that_its_type_can_hold_is_no_finding(
    dtype: torch.dtype, scale: float, on_device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "reads_are_free", lambda device: not on_device)
    run, applied = recorded(tmp_path / "r", [1.0, scale, scale], dtype)
    assert run.manifest.finding is None
    assert run.status == "completed"
    assert run.steps()["grad_norm"].tolist() == pytest.approx(applied, rel=1e-6)
    fits = 1e-44 < scale < 3e38
    held = run.layers().query("step > 0")["grad_norm"]
    assert ((held > 0) & (held < math.inf)).all() == fits
    assert len(run.manifest.notes) == (not fits)


def test_what_float32_cannot_hold_is_noted_once_with_its_first_tensor_and_step(tmp_path: Path) -> None:
    run, _ = recorded(tmp_path / "r", [1.0, 1e39, 1e39, 1.0], torch.float64)
    (note,) = run.manifest.notes
    assert note.startswith("some norms are beyond float32, first grad_norm")
    assert "of 0.weight in step 1" in note
    assert run.layers().query("step == 1")["grad_norm"].tolist() == [math.inf] * 4


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_not_finite_is_found_all_the_same(bad: float, dtype: torch.dtype, tmp_path: Path) -> None:
    run, _ = recorded(tmp_path / "r", [1.0, 1e30, bad], dtype)
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    found = {"step": 2, "loss": 1.0, "tensor": "0.weight", "quantity": "grad_norm", "tensors": names}
    assert run.manifest.finding == found
    told = next(summary_lines(run))
    first = "first tensors 0.weight, 0.bias, 1.weight and 1.bias (grad_norm)"
    assert told == f"A tensor was not finite: loss 1.0 in step 2; {first}"


def test_finite_elements_whose_norm_no_float64_holds_are_no_finding(tmp_path: Path) -> None:
    run, _ = recorded(tmp_path / "r", [1.7e308], torch.float64)
    assert run.manifest.finding is None


@pytest.mark.parametrize(
    ("finding", "status", "step"),
    [
        ({"step": 3, "loss": "nan", "tensor": None, "quantity": None}, "diverged", 3),
        ({"step": 3, "loss": "inf", "tensor": "a", "quantity": "grad_norm"}, "failed", 3),
        ({"step": 3, "loss": None, "tensor": "a", "quantity": "grad_norm"}, "completed", None),
        ({"step": 3, "loss": 1.5, "tensor": "a", "quantity": "grad_norm"}, "completed", None),
        ({"step": 3, "loss": 1.5, "tensor": "a", "quantity": "grad_norm"}, "diverged", 3),
        (None, "completed", None),
    ],
)
def test_a_finding_is_of_a_loss_where_one_was_told_that_is_not_finite(
    finding: dict[str, object] | None, status: str, step: int | None
) -> None:
    assert RunFacts(name="r", finding=finding, status=status).bad_loss_step == step
    if finding is not None:
        assert is_of_loss(finding) == (finding["loss"] in ("nan", "inf"))
