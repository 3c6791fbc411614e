from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tvlars_probe
from tvlars_probe.analyses.grid import LayerGrid
from tvlars_probe.analyses.replay import COLUMNS, replay
from tvlars_probe.analyses.replay_of_run import replay_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.analyses.variants import Variant
from tvlars_probe.errors import TraceError, UserError
from tvlars_probe.optimizers.trust_ratios import trust_ratios
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("lars", {}),
        ("lars", {"denominator": "sum", "trust_clip": True}),
        ("lars", {"denominator": "grad", "exclusion": "undecayed"}),
        ("tvlars", {}),
        ("tvlars", {"alpha": 0.5, "delay": 3.0, "gamma_min": 0.1}),
        ("lamb", {}),
        ("lamb", {"trust_clip": True}),
    ],
    ids=str,
)
def test_the_runs_own_settings_reproduce_its_trust_ratios(
    optimizer: str, settings: dict[str, Any], trained: Callable[..., Path]
) -> None:
    result = replay_of(Source(open_run(trained(optimizer, "lars-warm", **settings))))
    off = np.abs(result.replayed_ratio / result.applied_ratio - 1)
    assert off[~result.cancelled].max() < 1e-4
    assert result.verdict.answer == "the same"


def built(weights: list[torch.Tensor], optimizer: str, **settings: Any) -> list[float]:
    """The trust ratios that the optimizer itself takes for these weights (and gradients)."""
    params = [torch.nn.Parameter(w.clone()) for w in weights]
    for p, w in zip(params, weights, strict=True):
        p.grad = torch.sin(3 * w) * 0.1
    made = {"lars": tvlars_probe.LARS, "tvlars": tvlars_probe.TVLARS}[optimizer](params, lr=2.0, **settings)
    made.step()
    return made.last_step.trust_ratio.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("lars", {"denominator": "sum", "eta": 0.02}),
        ("lars", {"denominator": "grad", "exclusion": "undecayed"}),
        ("lars", {"trust_clip": True, "eta": 1.0, "weight_decay": 0.1}),
        ("tvlars", {"lmbda": 0.3, "alpha": 0.2, "delay": 2.0, "gamma_min": 0.05}),
    ],
    ids=str,
)
def test_a_variant_gives_what_the_optimizer_itself_would_have_taken(optimizer: str, settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((4, 5), (300, 9), (7,))]
    filters = {"weight_decay_filter": True, "lars_adaptation_filter": True}
    expected = built(weights, optimizer, **{"weight_decay": 5e-4, **settings}, **filters)
    variant = Variant(optimizer=optimizer, **settings)
    doubles = [w.double() for w in weights]
    grads = [torch.sin(3 * w).double() * 0.1 for w in weights]
    group, ndims = variant.description, (2, 2, 1)
    found = trust_ratios(
        group,
        weight_norm=np.array([[float(w.norm()) for w in doubles]]),
        direction=np.array([[float(g.norm()) for g in grads]]),
        dot=np.array([[float((w * g).sum()) for w, g in zip(doubles, grads, strict=True)]]),
        lr=np.full((1, 3), 2.0),
        updates=np.array([1]),
        decay=np.array([group.decay_of(ndim) for ndim in ndims]),
        adapted=np.array([group.adapts(ndim) for ndim in ndims]),
    )
    assert found.ratio[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_rows_where_the_gradient_nearly_cancels_the_decay_are_flagged() -> None:
    closeness = trust_ratios(
        Variant(weight_decay=0.1).description,
        weight_norm=np.array([[10.0, 10.0]]),
        direction=np.array([[1.0, 1.0]]),
        dot=np.array([[-9.99, 9.99]]),
        lr=np.ones((1, 2)),
        decay=np.array([0.1, 0.1]),
        adapted=np.ones(2, bool),
    ).closeness
    assert closeness[0, 0] < 0.05 < closeness[0, 1]


def test_a_denominator_of_a_sum_is_smaller_in_rate_and_eta_scales_it(trained: Callable[..., Path]) -> None:
    run = open_run(trained("lars"))
    twenty = replay_of(Source(run), eta=0.02)
    adapted = twenty.table[twenty.table["parameter"].str.endswith("weight")]
    assert adapted["rate_quotient"].to_numpy() == pytest.approx(20.0, rel=1e-4)
    summed = replay_of(Source(run), denominator="sum").table
    assert (summed["highest_quotient"] <= 1 + 1e-6).all()


def test_another_schedule_changes_the_rate_by_its_factor(trained: Callable[..., Path]) -> None:
    run = open_run(trained("lars"))
    result = replay_of(Source(run), schedule="cosine")
    steps = np.arange(32)
    expected = 0.5 * (1 + np.cos(np.pi * steps / 32))
    assert result.replayed[:, 0] / result.applied[:, 0] == pytest.approx(expected, abs=1e-6)


def test_lamb_is_replayed_from_traces_of_lamb_only(trained: Callable[..., Path]) -> None:
    with pytest.raises(TraceError, match="has no adam_norm and weight_adam_dot in layers"):
        replay_of(Source(open_run(trained("lars"))), optimizer="lamb")


def test_settings_outside_their_range_are_refused(trained: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="--eta -1 is outside its range"):
        replay_of(Source(open_run(trained("lars"))), eta=-1.0)
    with pytest.raises(UserError, match="unknown --denominator 'max'"):
        replay_of(Source(open_run(trained("lars"))), denominator="max")


def test_sgd_is_replayed_as_lars_and_rows_are_one_per_step_and_tensor(trained: Callable[..., Path]) -> None:
    run = open_run(trained("sgd"))
    result = replay_of(Source(run), optimizer="lars")
    assert len(result.rows()) == len(run.layers(["step"]))
    assert "one-step counterfactual" in result.verdict.reason


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """LARS with two groups of settings and rates of their own, beside SGD."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.Tanh(), torch.nn.Linear(12, 8), torch.nn.Linear(8, 4))
    groups = [
        {"params": [*model[0].parameters()]},
        {"params": [*model[2].parameters()], "weight_decay": 0.1, "lr": 0.05, "eta": 0.01, "trust_clip": True},
    ]
    optimizers = [tvlars_probe.LARS(groups, lr=1.0), torch.optim.SGD(model[3].parameters(), lr=0.1)]
    with tvlars_probe.record(model, optimizers, tmp_path / "grouped"):
        for _ in range(6):
            for optimizer in optimizers:
                optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.randn(32, 16)), torch.randint(0, 4, (32,))).backward()
            for optimizer in optimizers:
                optimizer.step()
    return tmp_path / "grouped"


def test_each_parameter_group_is_replayed_with_its_own_settings(grouped: Path) -> None:
    result = replay_of(Source(open_run(grouped)))
    off = np.abs(result.replayed_ratio / result.applied_ratio - 1)
    assert off[~result.cancelled].max() < 1e-4
    assert result.verdict.answer == "the same"
    settings = dict(zip(result.parameters, result.variants, strict=True))
    told = [(v.eta, v.weight_decay, v.trust_clip) for name in ("0.weight", "2.bias") if (v := settings[name])]
    assert told == [(0.001, 5e-4, False), (0.01, 0.1, True)]
    assert settings["3.weight"] is None


def test_a_given_setting_is_for_all_groups_and_the_others_stay(grouped: Path) -> None:
    result = replay_of(Source(open_run(grouped)), eta=0.5)
    settings = dict(zip(result.parameters, result.variants, strict=True))
    told = [(v.eta, v.weight_decay) for name in ("0.weight", "2.weight") if (v := settings[name])]
    assert told == [(0.5, 5e-4), (0.5, 0.1)]


def test_a_learning_rate_is_that_of_the_first_group_and_a_rate_of_ones_own_is_kept(
    grouped: Path, trained: Callable[..., Path]
) -> None:
    rates = replay_of(Source(open_run(grouped)), lr=4.0).table.set_index("parameter")["rate_quotient"]
    assert rates[["0.weight", "0.bias"]].tolist() == pytest.approx([4, 4])
    assert rates[["3.weight", "3.bias"]].tolist() == pytest.approx([1, 1])
    run = open_run(trained("lars", excluded_lr=0.01))
    result = replay_of(Source(run), lr=64.0, schedule="cosine")
    factors = 0.5 * (1 + np.cos(np.pi * np.arange(32) / 32))
    for name, lr in (("0.weight", 64.0), ("8.bias", 0.01)):
        at = result.parameters.index(name)
        assert result.replayed[:, at] / result.replayed_ratio[:, at] == pytest.approx(lr * factors, rel=1e-5)


def test_where_the_excluded_tensors_have_the_higher_rate_the_runs_own_settings_give_its_own_rates(
    trained: Callable[..., Path],
) -> None:
    run = Source(open_run(trained("lars", "lars-warm", lr=1.0, excluded_lr=4.0)))
    assert replay_of(run, schedule="lars-warm").verdict.answer == "the same"
    rates = replay_of(run, lr=3.0).table.set_index("parameter")["rate_quotient"]
    assert rates[["0.weight", "8.bias"]].tolist() == pytest.approx([3.0, 1.0])


@pytest.fixture
def scheduled(tmp_path: Path) -> Path:
    """LARS whose rate warms up over four steps, beside SGD at a constant rate; the loop tells nothing of that."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False), torch.nn.Linear(4, 3, bias=False))
    optimizers = [tvlars_probe.LARS(model[0].parameters(), 1.0), torch.optim.SGD(model[1].parameters(), lr=0.1)]
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizers[0], lambda step: min((step + 1) / 4, 1.0))
    with tvlars_probe.record(model, optimizers, tmp_path / "scheduled") as rec:
        for _ in range(8):
            loss = model(torch.randn(5, 6)).square().mean()
            model.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            rec.log(loss=loss)
            warm_up.step()
    return tmp_path / "scheduled"


def test_another_rate_keeps_a_schedule_that_nobody_tells(scheduled: Path) -> None:
    result = replay_of(Source(open_run(scheduled)), lr=3.0)
    rates = result.replayed / result.replayed_ratio
    assert rates[:, 0] == pytest.approx(3.0 * np.minimum(np.arange(1, 9) / 4, 1))
    assert rates[:, 1] == pytest.approx(0.1)


def test_a_schedule_replaces_none_that_a_group_has_of_its_own(scheduled: Path) -> None:
    with pytest.raises(UserError, match=r"the rate of 1\.weight in scheduled has a schedule of its own, .* leave"):
        replay_of(Source(open_run(scheduled)), schedule="none")


def test_the_rate_that_lars_warm_scaled_is_not_scaled_twice(trained: Callable[..., Path]) -> None:
    result = replay_of(Source(open_run(trained("lars", "lars-warm", lr=None))), schedule="lars-warm")
    assert result.verdict.answer == "the same"


@pytest.mark.parametrize(
    "settings", [{"eta": 0.0}, {"optimizer": "tvlars", "lmbda": 1e9}, {"eta": 1e308}, {"schedule": "none"}], ids=str
)
def test_a_rate_that_becomes_zero_or_was_zero_is_a_difference(
    settings: dict[str, Any], trained: Callable[..., Path]
) -> None:
    verdict = replay_of(Source(open_run(trained("lars", "lars-warm"))), **settings).verdict
    assert verdict.answer not in ("the same", "nothing to compare")
    assert "rows" in verdict.reason
    if "schedule" not in settings:
        assert ("infinite in" if settings.get("eta") else "zero in") in verdict.reason


@pytest.mark.parametrize("lr", [0.0, -5.0, np.nan, np.inf])
def test_a_learning_rate_that_is_none_is_refused(lr: float, trained: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"--lr \S+ is outside its range \(allowed: above 0\)"):
        replay_of(Source(open_run(trained("lars"))), lr=lr)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lmbda": 3.0}, "--lmbda has no effect on lars: leave it out, or replay --optimizer tvlars"),
        ({"adam": True}, "--adam has no effect on lars: leave it out, or replay --optimizer lamb"),
        ({"optimizer": "lamb", "eta": 3.0}, "--eta has no effect on lamb"),
        ({"warmup_epochs": 1.0}, "--warmup-epochs has no effect with --schedule none"),
        ({"optimizer": "tvlars", "delay": np.nan}, "--delay nan is outside its range"),
        ({"optimizer": "tvlars", "alpha": np.inf}, "--alpha inf is outside its range"),
    ],
    ids=str,
)
def test_settings_without_effect_are_refused(
    settings: dict[str, Any], message: str, trained: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=message):
        replay_of(Source(open_run(trained("lars"))), **settings)


def test_a_trace_without_known_ratios_gives_nothing_to_compare(grouped: Path) -> None:
    run = open_run(grouped)
    source = Source(run)
    facts = source.facts
    grid = source.layers(COLUMNS)
    unknown = LayerGrid(grid.steps, grid.parameters, {**grid.values, "trust_ratio": grid["trust_ratio"] * np.nan})
    verdict = replay(unknown, facts, [Variant()] * len(grid.parameters)).verdict
    assert verdict.answer == "nothing to compare"
    assert "no recorded row tells the rate that was applied" in verdict.reason


@pytest.mark.filterwarnings("error")
def test_norms_of_a_run_that_diverged_are_replayed_without_warnings(tmp_path: Path) -> None:
    p = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = tvlars_probe.LARS([p], lr=1.0)
    with tvlars_probe.record(None, optimizer, tmp_path / "diverged"):
        for value in (1.0, 1.0, 1e-42, 1e30, float("inf"), 1.0):
            p.grad = torch.full_like(p, value)
            optimizer.step()
    result = replay_of(Source(open_run(tmp_path / "diverged")), eta=0.1)
    assert result.verdict.answer == "100 times the rate"
    row = result.table.iloc[0]  # the medians of both are of the same rows
    assert row["replayed_ratio"] / row["applied_ratio"] == pytest.approx(100)


def test_a_run_whose_manifest_tells_no_groups_is_replayed_or_refused_with_a_reason(grouped: Path) -> None:
    run = open_run(grouped)
    run.manifest.groups, run.manifest.config = [], {"schedule": "mine"}
    assert replay_of(Source(run), eta=0.5).verdict.answer
    with pytest.raises(UserError, match="doesn't tell its learning rate: give --lr"):
        replay_of(Source(run), schedule="none")
