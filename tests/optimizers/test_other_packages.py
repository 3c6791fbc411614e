"""What the columns hold of optimizers that people take from other packages, as docs/reference/optimizers.md says it."""

from __future__ import annotations

import copy
import importlib
import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tests.optimizers.test_description import deviation, tensors
from tests.probes.small_loop import loop, net, observed
from tvlars_probe import describe

if TYPE_CHECKING:
    from pathlib import Path

    from torch.optim import Optimizer

    Settings = dict[str, Any]

DESCRIBED: dict[str, Settings] = {
    "lion_pytorch.Lion": {},
    "timm.optim.Lion": {},
    "timm.optim.NvNovoGrad": {},
    "pytorch_optimizer.Lion": {},
    "pytorch_optimizer.NovoGrad": {},
}
UNKNOWN: dict[str, Settings] = {
    "torch.optim.Adafactor": {},
    "timm.optim.Adafactor": {},
    "timm.optim.AdafactorBigVision": {},
    "timm.optim.Muon": {},
    "lion_pytorch.foreach.Lion": {},
    "pytorch_optimizer.SOAP": {},
    "pytorch_optimizer.Shampoo": {},
    "pytorch_optimizer.ScalableShampoo": {"start_preconditioning_step": 2, "preconditioning_compute_steps": 1},
    "pytorch_optimizer.AdEMAMix": {},
    "pytorch_optimizer.Prodigy": {},
    "pytorch_optimizer.ScheduleFreeAdamW": {},
    "pytorch_optimizer.ScheduleFreeSGD": {},
    "prodigyopt.Prodigy": {},
    "schedulefree.AdamWScheduleFree": {},
    "schedulefree.SGDScheduleFree": {},
    "schedulefree.RAdamScheduleFree": {},
}


def built(path: str, params: Any, **settings: Any) -> Optimizer:
    """An optimizer by its name in its package; the test is skipped where the package isn't installed."""
    module, _, name = path.rpartition(".")
    pytest.importorskip(module.partition(".")[0])
    made: Optimizer = getattr(importlib.import_module(module), name)(
        params, **{"lr": 0.01, **{**DESCRIBED, **UNKNOWN}.get(path, {}), **settings}
    )
    if hasattr(made, "train"):  # Schedule-Free
        made.train()
    return made


def warned(path: str) -> AbstractContextManager[Any]:
    return pytest.warns(UserWarning, match="trust_ratio and the applied rates") if path in UNKNOWN else nullcontext()


@pytest.mark.parametrize("path", [*DESCRIBED, *UNKNOWN])
def test_norms_are_of_the_tensors_whatever_the_optimizer_is(path: str, tmp_path: Path) -> None:
    """And the trust ratio is null where the class is unknown, 1 where it is known to have none."""
    recorded, watched = net(), net()
    optimizer, other = (built(path, model.parameters()) for model in (recorded, watched))
    with warned(path), tvlars_probe.record(recorded, optimizer, tmp_path / "r") as rec:
        loop(recorded, optimizer, range(4), rec)
    rows = tvlars_probe.open_run(rec.path).layers()
    assert rows.groupby("step").size().tolist() == [6] * 4
    for step in range(4):
        seen = observed(watched, other, step)
        for row in rows[rows.step == step].itertuples():
            of = seen[row.parameter]
            assert row.weight_norm == pytest.approx(of["weight_norm"], rel=1e-5)
            assert row.grad_norm == pytest.approx(of["grad_norm"], rel=1e-5, abs=1e-9)
            # What the copies of a tensor before and after differ by is rounded with the weights.
            assert row.update_norm == pytest.approx(of["update_norm"], rel=1e-4, abs=1e-6 * of["weight_norm"])
    assert rows.lr.tolist() == pytest.approx([0.01] * len(rows))
    assert rows.trust_ratio.isna().all() if path in UNKNOWN else (rows.trust_ratio == 1).all()
    assert rows.direction_norm.isna().all()


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.2}, {"weight_decay": 0.2, "decoupled_weight_decay": True}])
def test_lion_pytorchs_lion_is_described(settings: Settings) -> None:
    params = tensors()
    optimizer = built("lion_pytorch.Lion", params, lr=0.3, betas=(0.7, 0.8), **settings)
    groups = describe(optimizer)
    assert groups[0].is_known
    assert not groups[0].has_rates
    assert deviation(optimizer, params, groups) < 1e-10


@pytest.mark.parametrize("extra", ["use_gc", "adanorm", "cautious", "fixed_decay"])
def test_options_that_no_word_expresses_leave_the_group_unknown(extra: str) -> None:
    assert not describe(built("pytorch_optimizer.Lion", tensors(), **{extra: True}))[0].is_known


def test_novograds_rate_is_divided_by_the_norm_that_it_keeps() -> None:
    """And its effective sharpness is measured by that rate: lr/(√v + eps), v the first gradient's square."""
    model = net()
    optimizer = built("timm.optim.NvNovoGrad", model.parameters(), lr=0.5)
    seen = observed(model, optimizer, 0)
    rates = tvlars_probe.applied_rates(model, optimizer)
    for name, of in seen.items():
        assert float(rates.rates[name]) == pytest.approx(0.5 / (of["grad_norm"] + 1e-8), rel=1e-5)
    assert rates.limit == pytest.approx(2 * (1 + 0.95))


def test_a_lions_update_has_the_norm_of_its_signs(tmp_path: Path) -> None:
    """lr·√n for n elements, whatever the gradient is."""
    model = net()
    optimizer = built("timm.optim.Lion", model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
    rows, sizes = tvlars_probe.open_run(rec.path).layers(), {n: p.numel() for n, p in model.named_parameters()}
    # BatchNorm removes the bias before it: there the gradient is rounding.
    kept = rows[rows.parameter != "0.bias"]
    assert kept.update_norm.tolist() == pytest.approx([0.01 * sizes[p] ** 0.5 for p in kept.parameter], rel=1e-4)


def one_row(model: Any, optimizer: Optimizer, path: Path, *, steps: int = 3) -> Any:
    """The row of the last layer's weight in the last of some recorded steps."""
    with pytest.warns(UserWarning, match="trust_ratio"), tvlars_probe.record(model, optimizer, path) as rec:
        loop(model, optimizer, range(steps), rec)
    rows = tvlars_probe.open_run(rec.path).layers()
    (row,) = rows[(rows.parameter == "4.weight") & (rows.step == steps - 1)].itertuples()
    return row


@pytest.mark.parametrize("path", ["schedulefree.AdamWScheduleFree", "pytorch_optimizer.ScheduleFreeAdamW"])
def test_schedule_frees_weights_are_those_that_the_gradient_is_of(path: str, tmp_path: Path) -> None:
    """Not the averaged ones of eval(), x: they are y = β₁·x + (1 − β₁)·z."""
    model = net()
    optimizer = built(path, model.parameters())
    loop(model, optimizer, range(3))
    averaged, z = copy.deepcopy((model, optimizer)), optimizer.state[model[4].weight]["z"].clone()
    averaged[1].eval()  # type: ignore[attr-defined]
    x = averaged[0][4].weight.detach()
    row = one_row(model, optimizer, tmp_path / "r", steps=1)
    assert row.weight_norm == pytest.approx((0.9 * x + 0.1 * z).norm().item(), rel=1e-5)
    assert abs(row.weight_norm / x.norm().item() - 1) > 1e-4


def test_prodigys_estimate_of_the_distance_is_no_part_of_the_rate(tmp_path: Path) -> None:
    """‖Δw‖ is lr·d·‖m/(√v + d·eps)‖ with the group's d, from before the step where it isn't beside eps."""
    model = net()
    optimizer = built("prodigyopt.Prodigy", model.parameters(), lr=1.0, d0=1e-3)
    loop(model, optimizer, range(3))
    before = optimizer.param_groups[0]["d"]
    row = one_row(model, optimizer, tmp_path / "r", steps=1)
    state, eps = optimizer.state[model[4].weight], optimizer.param_groups[0]["d"] * 1e-8
    direction = (state["exp_avg"] / (state["exp_avg_sq"].sqrt() + eps)).norm().item()
    assert row.update_norm == pytest.approx(before * direction, rel=1e-3)
    assert (row.lr, before < 0.1) == (1.0, True)


def test_adafactors_rate_is_relative_to_the_weights_and_falls_by_itself(tmp_path: Path) -> None:
    """Its RMS is at most min(lr, 1/√t)·max(ε₂, RMS(w)), whatever lr says; torch's default ε₂ is 0.001 and d is 1."""
    model = net()
    row = one_row(model, torch.optim.Adafactor(model.parameters(), lr=10.0, weight_decay=0.0), tmp_path / "r")
    size = math.sqrt(model[4].weight.numel())
    bound = 3**-0.5 * row.weight_norm
    assert row.lr == 10.0
    assert max(1e-3, row.weight_norm / size) == row.weight_norm / size
    assert 0.2 * bound < row.update_norm <= bound * (1 + 1e-5)


def test_soaps_first_step_makes_no_update(tmp_path: Path) -> None:
    model = net()
    assert one_row(model, built("pytorch_optimizer.SOAP", model.parameters()), tmp_path / "a", steps=1).update_norm == 0
    assert one_row(model, built("pytorch_optimizer.SOAP", model.parameters()), tmp_path / "b", steps=2).update_norm > 0


def test_a_class_that_nobody_has_seen_is_unknown_and_its_norms_are_recorded(tmp_path: Path) -> None:
    class Novel(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.sub_(p.grad.sign() * p.abs(), alpha=0.01)

    model = net()
    optimizer = Novel(model.parameters(), {"lr": 0.01})
    row = one_row(model, optimizer, tmp_path / "r", steps=1)
    assert not describe(optimizer)[0].is_known
    assert row.update_norm == pytest.approx(0.01 * row.weight_norm, rel=1e-3)
    assert math.isnan(row.trust_ratio)
