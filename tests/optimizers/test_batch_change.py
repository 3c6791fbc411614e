from __future__ import annotations

import math

import pytest

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.batch_change import for_batch, rate_factor
from tvlars_probe.optimizers.phi import phi
from tvlars_probe.optimizers.registry import OptimizerConfig


@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 2.0), ("linear", 4.0), ("none", 1.0)])
def test_every_learning_rate_follows_the_batch(rule: str, factor: float) -> None:
    lars = for_batch(OptimizerConfig(name="lars", excluded_lr=0.1), ratio=4, rule=rule, updates=10)
    assert lars.settings()["lr"] == 5.0 * factor  # lars' own default is 5
    assert lars.excluded_lr == pytest.approx(0.1 * factor, rel=1e-15)
    muon = for_batch(OptimizerConfig(name="muon"), ratio=4, rule=rule, updates=10)
    assert (muon.peak, muon.rest.peak if muon.rest else None) == (0.02 * factor, 0.001 * factor)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UserError, match=r"--lr-rule 'cubic' .known: sqrt, linear, none"):
        rate_factor("cubic", 2.0)


@pytest.mark.parametrize("ratio", [0.25, 3.0, 16.0])
def test_phi_is_at_equal_samples_what_it_would_have_been(ratio: float) -> None:
    before = OptimizerConfig(name="tvlars", lmbda=0.03, delay=90.0, gamma_min=0.1)
    updates = 48
    after = for_batch(before, ratio=ratio, rule="none", updates=updates)

    def at(config: OptimizerConfig, t: float) -> float:
        return phi(t, lmbda=config.lmbda, alpha=config.alpha, delay=config.delay, gamma_min=config.gamma_min)

    for made in range(1, 60):
        assert at(after, updates + made) == pytest.approx(at(before, updates + made * ratio), rel=1e-12)


def test_the_same_batch_changes_no_bit() -> None:
    before = OptimizerConfig(name="tvlars", lr=0.7, lmbda=0.1, delay=0.3)
    for rule in ("sqrt", "linear", "none"):
        assert for_batch(before, ratio=1, rule=rule, updates=7) == before
    assert math.isclose(for_batch(before, ratio=2, rule="sqrt", updates=7).peak, 0.7 * math.sqrt(2))
