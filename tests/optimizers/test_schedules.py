from __future__ import annotations

import pytest
import torch
from torch import nn

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.schedules import BranchSchedule, ScheduleConfig


def test_cosine_is_torchs() -> None:
    schedule = ScheduleConfig(name="cosine").build(epochs=3, steps_per_epoch=10, batch_size=64)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 2.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for step in range(30):
        assert 2.0 * schedule.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        torchs.step()


def test_none_is_constant() -> None:
    schedule = ScheduleConfig().build(epochs=3, steps_per_epoch=10, batch_size=64)
    assert {schedule.factor(step) for step in range(30)} == {1.0}


@pytest.mark.parametrize(("epochs", "warmup"), [(100, 20), (50, 10), (200, 20), (2, 0.4)])
def test_warm_up_is_a_fifth_of_the_phase_or_20_epochs(epochs: int, warmup: float) -> None:
    schedule = ScheduleConfig(name="lars-warm").build(epochs=epochs, steps_per_epoch=10, batch_size=512)
    assert schedule.warmup_steps == round(10 * warmup)
    assert schedule.factor(schedule.warmup_steps) == schedule.peak_factor == 2.0


def test_warm_up_takes_fractions_and_rounds_to_steps() -> None:
    schedule = ScheduleConfig(name="lars-warm", warmup_epochs=0.26).build(epochs=1, steps_per_epoch=10, batch_size=256)
    assert schedule.warmup_steps == 3
    assert [schedule.factor(step) for step in range(3)] == pytest.approx([0, 1 / 3, 2 / 3])


def test_no_warm_up_begins_at_the_peak() -> None:
    schedule = ScheduleConfig(name="lars-warm", warmup_epochs=0).build(epochs=2, steps_per_epoch=5, batch_size=256)
    assert schedule.factor(0) == 1.0


@pytest.mark.parametrize(("name", "factor"), [("none", 1.0), ("cosine", 1.0), ("lars-warm", 1.5)])
def test_the_factor_of_the_peak_is_that_of_the_steps(name: str, factor: float) -> None:
    config = ScheduleConfig(name=name)
    schedule = config.build(epochs=5, steps_per_epoch=10, batch_size=384)
    assert max(schedule.factor(step) for step in range(50)) == config.peak_factor(384) == factor


@pytest.mark.parametrize("peak", [-1.0, float("nan"), float("inf")])
def test_a_peak_outside_its_range_is_refused(peak: float) -> None:
    with pytest.raises(UserError, match=r"--peak-lr .* is outside its range \(allowed: 0 or more\)"):
        ScheduleConfig(peak_lr=peak)


@pytest.mark.parametrize("warmup", [1.0, 0.96, 3.0])
def test_a_warm_up_that_leaves_no_step_is_refused(warmup: float) -> None:
    config = ScheduleConfig(name="lars-warm", warmup_epochs=warmup)
    with pytest.raises(UserError, match="leaves no step after the warm-up"):
        config.build(epochs=1, steps_per_epoch=10, batch_size=256)


def test_a_warm_up_without_lars_warm_is_refused() -> None:
    with pytest.raises(UserError, match="no effect with --schedule cosine"):
        ScheduleConfig(name="cosine", warmup_epochs=1)


def test_an_unknown_schedule_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown schedule 'step' \(known: none, cosine, lars-warm\)"):
        ScheduleConfig(name="step")


@pytest.mark.parametrize("name", ["none", "cosine", "lars-warm"])
@pytest.mark.parametrize(("batch_size", "first"), [(64, 7), (256, 3), (1024, 11)])
def test_a_branch_reads_the_schedule_by_samples(name: str, batch_size: int, first: int) -> None:
    """At every number of samples that both have, it has the other run's factor; the peak is the highest of its own."""
    config = ScheduleConfig(name=name)
    whole = config.build(epochs=10, steps_per_epoch=4, batch_size=256)
    stride = batch_size / 256
    steps = int((40 - first) / stride)
    branch = BranchSchedule(name, steps, whole=whole, first=first, stride=stride)
    for step in range(steps):
        at = first + step * stride
        if at == int(at):
            assert branch.factor(step) == whole.factor(int(at))
    assert branch.peak_factor == max(branch.factor(step) for step in range(steps))


def test_a_branch_beyond_the_end_keeps_the_last_factor() -> None:
    whole = ScheduleConfig(name="cosine").build(epochs=1, steps_per_epoch=10, batch_size=8)
    branch = BranchSchedule("cosine", 8, whole=whole, first=8, stride=1.0)
    assert [branch.factor(step) for step in (2, 5, 7)] == [whole.factor(10)] * 3
