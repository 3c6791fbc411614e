"""Each fault planted in a trace is found, and nothing in sound ones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.synthetic import lars_facts, layers, warm
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.diagnosis import of_run
from tvlars_probe.diagnosis.loss_scale import accumulation_shows, epoch_shows
from tvlars_probe.diagnosis.of_run import COLUMNS, diagnose

if TYPE_CHECKING:
    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.diagnosis.results import Diagnosis

STEPS, NAMES = 60, ("a.weight", "b.weight", "b.bias")
CHECKS = {
    "finite",
    "phi_alive",
    "ratios_alive",
    "zeros_held",
    "weights_kept",
    "excluded_kept",
    "peak_reached",
    "warmup_worked",
    "loss_scale",
}


def made(
    *, lr: np.ndarray | None = None, loss: np.ndarray | None = None, facts: dict[str, Any] | None = None,
    bias: float = 1.0, columns: dict[str, Any] | None = None, phi: np.ndarray | None = None,
    micro_batches: int | None = None,
) -> Diagnosis:  # fmt: skip
    """The diagnosis of a LARS run of sixty steps, six epochs, sound but for what is given."""
    rates = np.ones(STEPS) if lr is None else lr
    biased = {name: np.full(STEPS, bias if name == "b.bias" else 4.0) for name in NAMES}
    frame = layers(biased, {name: np.full(STEPS, 0.5) for name in NAMES}, rates, biases=("b.bias",))
    frame["update_norm"] = np.where(frame["parameter"] == "b.bias", 0.5 * frame["lr"], 0.004 * frame["lr"])
    for name, values in (columns or {}).items():
        frame[name] = np.asarray(values(frame), np.float32)
    told: RunFacts = lars_facts(NAMES, biases=("b.bias",), **(facts or {}))
    step = np.arange(STEPS)
    steps = pd.DataFrame(
        {
            "step": step,
            "epoch": step // 10,
            "loss": np.linspace(2.3, 1.0, STEPS) if loss is None else loss,
            "lr": rates,
            "phi": np.full(STEPS, np.nan) if phi is None else phi,
        }
    )
    return diagnose(LayerGrid.from_frame(frame, NAMES), steps, told, micro_batches=micro_batches)


def wrong(**faults: Any) -> dict[str, str]:
    return {check.name: check.came for check in made(**faults).wrong}


def test_a_sound_run_has_nothing_wrong() -> None:
    found = made(lr=warm(STEPS, 12), facts={"schedule": "lars-warm"})
    assert {check.name for check in found.checks} == CHECKS
    assert {check.name: check.came for check in found.wrong} == {}
    assert found["warmup_worked"].answer == "right"
    assert found["phi_alive"].answer == "not applicable"


def test_how_many_steps_rules_see_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dying = np.exp(-np.arange(STEPS))
    faults = {"phi": dying, "columns": {"phi": lambda f: dying[f["step"]], "update_norm": lambda f: 0.3 * f["step"]}}
    whole = made(**faults)
    monkeypatch.setattr(of_run, "WINDOW", 7)
    assert made(**faults) == whole
    assert {"phi_alive", "weights_kept"} <= {check.name for check in whole.wrong}


def test_a_dead_phi_is_found_at_its_step() -> None:
    dying = np.exp(-np.arange(STEPS))
    found = wrong(phi=dying, columns={"phi": lambda f: dying[f["step"]]})
    assert {*found} == {"phi_alive"}
    assert found["phi_alive"].startswith("from step 10 on")  # exp(-10) is the first below a ten-thousandth


def test_a_tensor_that_one_update_replaces_is_found() -> None:
    found = wrong(bias=0.4)
    assert {*found} == {"excluded_kept"}
    assert "b.bias" in found["excluded_kept"]


def test_a_gradient_that_isnt_finite_is_found() -> None:
    grads = wrong(columns={"grad_norm": lambda f: np.where(f["step"] >= 40, np.inf, f["grad_norm"])})
    assert grads["finite"].startswith("from step 40 on")
    told = wrong(facts={"finding": {"step": 59, "loss": "nan"}, "status": "diverged"})
    assert told["finite"] == "the manifest tells of a loss or a norm that isn't finite in step 59"


def test_a_rate_below_its_peak_is_found_where_the_run_is_complete() -> None:
    assert wrong(facts={"peak_lr": 4.0})["peak_reached"] == "the rate got to 1 of 4"
    assert made(facts={"peak_lr": 4.0, "status": "interrupted"})["peak_reached"].answer == "can't tell"
    assert made(facts={"peak_lr": None})["peak_reached"].answer == "not applicable"


@pytest.mark.parametrize("config", [{"schedule": {"warmup_epochs": 5}}, {"args": {"warmup_steps": 100}}])
def test_a_warmup_that_was_asked_for_and_not_made_is_found(config: dict[str, Any]) -> None:
    assert "the first rate is the highest" in wrong(facts={"config": config})["warmup_worked"]
    assert made()["warmup_worked"].answer == "not applicable"
    for further in ({"branch": {"run_id": "p"}}, {"warmup_steps": 0}):
        assert wrong(facts={"config": {**config, **further} if "branch" in further else further}) == {}


def test_a_warmup_that_the_trust_ratio_cancels_is_found() -> None:
    """LARC clips q at q/lr: the effective rate is the same whatever lr is."""
    rate = warm(STEPS, 20) + 1e-3
    found = wrong(lr=rate, facts={"peak_lr": 1.0}, columns={"trust_ratio": lambda f: 0.008 / f["lr"]})
    assert {*found} == {"warmup_worked"}
    assert "lr × trust ratio didn't" in found["warmup_worked"]


def test_a_loss_divided_by_the_epoch_is_found() -> None:
    """As the official code's, whose steps count from epoch·length on."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        true = 2.3 * np.exp(-np.arange(STEPS) / 40) * rng.normal(1, 0.03, STEPS)
        found = wrong(loss=true / (np.arange(STEPS) // 10 + 1))
        assert {*found} == {"loss_scale"}, seed
        assert wrong(loss=true) == {}


def test_losses_that_fall_at_the_end_of_each_epoch_alike_are_sound() -> None:
    """A model that has seen each sample once, or a rate that falls by epochs, makes other steps than 1/2, 2/3, 3/4."""
    epoch, rng = np.arange(STEPS) // 10, np.random.default_rng(1)
    for factor in (0.5, 0.7, 0.9):
        loss = factor**epoch * rng.normal(1, 0.02, STEPS)
        assert epoch_shows(loss, epoch.astype(float)).answer == "right"


@pytest.mark.parametrize(
    ("first", "classes", "pieces", "answer"),
    [
        (2.31, 10, 4, "right"),
        (2.31 / 4, 10, 4, "wrong"),
        (2.31 / 4, 10, None, "can't tell"),
        (2.31 / 4, 10, 8, "can't tell"),
        (1.62, 10, 4, "right"),
        (1.60, 10, 4, "can't tell"),
        (2.31, None, 4, "can't tell"),
        (9.0, 10, 4, "right"),
    ],
)
def test_a_first_loss_says_whether_it_was_divided_by_the_pieces(
    first: float, classes: int | None, pieces: int | None, answer: str
) -> None:
    assert accumulation_shows(first, classes, pieces).answer == answer


def test_a_loss_is_right_only_where_both_of_its_faults_can_be_seen() -> None:
    """lars_facts' last tensor has eight elements: a first loss of 2.3 is above ln 8."""
    both = made()["loss_scale"]
    assert both.answer == "right"
    assert both.came.startswith("the first loss 2.3 is at least 0.7 of that of guessing among 8 classes, ")
    for told in ({"phase": "pretrain"}, {"phase": None}):
        unknown = made(facts=told)["loss_scale"]
        assert unknown.answer == "can't tell"
        assert "the number of classes isn't known" in unknown.came
    short = made(loss=np.where(np.arange(STEPS) < 30, 2.3, np.nan))["loss_scale"]
    assert short.answer == "can't tell"
    assert short.came.startswith("the first loss 2.3 is at least")
    assert "fewer than 4 epochs" in short.came


def test_the_first_warmup_that_isnt_zero_counts() -> None:
    for config in ({"warmup_steps": 0, "warmup_ratio": 0.1}, {"warmup_ratio": 0.1, "warmup_steps": 0}):
        assert wrong(facts={"config": config})["warmup_worked"].startswith("warmup_ratio 0.1 asks for a warm-up")
    assert wrong(facts={"config": {"warmup_steps": 0, "warmup_ratio": 0.0}}) == {}


def test_a_run_without_layers_or_losses_is_told_so() -> None:
    none = LayerGrid(np.zeros(0, np.int64), (), {name: np.zeros((0, 0), np.float32) for name in COLUMNS})
    steps = pd.DataFrame({name: np.zeros(0) for name in ("step", "epoch", "loss", "lr", "phi")})
    told = dataclasses.replace(lars_facts(NAMES), groups=[])
    found = diagnose(none, steps, told)
    assert {check.answer for check in found.checks} == {"not applicable"}
