"""The study: its runs have equal budgets, and its page says what the committed results say."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from benchmarks.study import answers, experiments, page
from benchmarks.study.experiments import BUDGET, CASES, LARS, METHODS, SEEDS, TVLARS, UPDATES, VARIED, WARM
from benchmarks.study.results import DELAYS, INITIALIZATIONS, SEARCH, groups, results_of
from benchmarks.study.results import SEEDS as OF_SEEDS
from benchmarks.study.results import VARIANTS as OF_VARIANTS
from benchmarks.verdicts.grid import train
from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.runners.sweeps.grid import Grid

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("case", CASES)
def test_methods_have_equal_budgets_and_the_same_updates(case: str, tmp_path: Path) -> None:
    trials = experiments.searched(case, tmp_path)
    seeds = experiments.SEARCH_SEEDS[: CASES[case].searches]
    assert len(trials) == BUDGET * len(METHODS) * len(seeds)
    assert len({trial.path for trial in trials}) == len(trials)
    assert {trial.config.seed for trial in trials} == set(seeds)
    assert not set(seeds) & set(SEEDS)
    for trial in trials:
        config = trial.config
        held_out = {"digits": 1437 - 287, "fashion-mnist": 8000}[config.data.name.split("-val")[0]]
        assert config.scheduled_epochs * -(-held_out // config.batch_size) == UPDATES[case]


def test_lars_with_and_without_warm_up_are_tried_at_the_same_peak_rates(tmp_path: Path) -> None:
    trials = experiments.searched("fashion-mnist-4096", tmp_path)
    plain, warm = trials[:BUDGET], trials[BUDGET : 2 * BUDGET]
    assert [t.config.optimizer.lr for t in plain] == [t.config.optimizer.lr for t in warm]
    assert {t.config.schedule.warmup_for(t.config.scheduled_epochs) for t in plain} == {0}
    assert {t.config.schedule.warmup_for(t.config.scheduled_epochs) for t in warm} == {4}


def _row(purpose: str, method: str, accuracy: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"purpose": purpose, "case": VARIED, "method": method, "variant": "", "seed": seed, "peak_lr": 4.0,
            "lmbda": 0.01 if method == TVLARS else None, "test_accuracy": accuracy, "held_out_accuracy": accuracy,
            "diverged": False, "minimum": "escaped", "adaptive_end": 2.0, "redundant_share": 0.25,
            "clamped_share": 0.5} | more  # fmt: skip


def _of_seeds(purpose: str, method: str, accuracies: list[float], **more: Any) -> list[dict[str, Any]]:
    return [_row(purpose, method, accuracy, seed, **more) for seed, accuracy in enumerate(accuracies)]


def test_a_gain_is_of_pairs_of_one_seed() -> None:
    plain, warm = [80.0, 70.0, 90.0, 60.0, 75.0], [82.0, 72.1, 91.9, 62.0, 77.0]
    rows = pd.DataFrame([*_of_seeds(OF_SEEDS, WARM, warm), *reversed(_of_seeds(OF_SEEDS, LARS, plain))])
    (told,) = answers.gains(rows, WARM, LARS).to_dict("records")
    # Gains 2, 2.1, 1.9, 2, 2: a deviation of 0.0707, and 2.776 of Student's t for five.
    assert told["gain (points)"] == "2.00 ± 0.09"
    assert told[f"{WARM} is"] == "better"
    assert told[LARS].startswith("75.00 ± ")
    assert told[LARS].endswith(" at 4")


def test_minima_are_counted_and_shares_are_averaged() -> None:
    rows = pd.DataFrame(
        [*_of_seeds(OF_SEEDS, WARM, [80.0] * 4), _row(OF_SEEDS, WARM, 80.0, 4, minimum="trapped", adaptive_end=None)]
    )
    (told,) = answers.minima(rows).to_dict("records")
    assert [told[state] for state in answers.STATES] == [1, 4, 0, 0]
    assert told["adaptive sharpness at the end"] == "2.00 ± 0.00"
    assert answers.redundancy(rows)["redundant (%)"].tolist() == ["25.00 ± 0.00"]
    assert answers.replayed(rows).iloc[0, 1] == "50.00 ± 0.00"


def test_delays_initialisations_and_variants_have_a_column_or_row_each() -> None:
    rows = pd.DataFrame(
        [
            *_of_seeds(OF_SEEDS, LARS, [70.0, 71.0]),
            *_of_seeds(OF_SEEDS, WARM, [80.0, 81.0]),
            *_of_seeds(OF_SEEDS, TVLARS, [82.0, 83.0]),
            *itertools.chain(*(_of_seeds(DELAYS, TVLARS, [60.0 + x, 60.0 + x], variant=f"{x}") for x in (9, 1))),
            *itertools.chain(*(_of_seeds(INITIALIZATIONS, m, [50.0, 50.0], variant="other") for m in METHODS)),
            *itertools.chain(
                *(
                    _of_seeds(OF_VARIANTS, base, [90.0, 91.0], variant=name)
                    for name, (base, _) in experiments.VARIANTS.items()
                )
            ),
        ]
    )
    (delays,) = answers.by_delay(rows).to_dict("records")
    assert [*delays.items()][1:] == [("λT = 9", "69.00 ± 0.00"), ("λT = 1", "61.00 ± 0.00")]
    default, other = answers.by_initialisation(rows).to_dict("records")
    assert (default["gain of TVLARS"], other["gain of TVLARS"]) == ("2.00 ± 0.00", "0.00 ± 0.00")
    assert answers.by_variant(rows)["gain (points)"].tolist() == ["10.00 ± 0.00", "10.00 ± 0.00", "8.00 ± 0.00"]


def test_each_rate_of_the_search_has_a_column() -> None:
    rows = pd.DataFrame(
        [_row(SEARCH, method, 50.0 + rate, peak_lr=rate) for method in (WARM, LARS) for rate in (16.0, 2.0)]
    )
    table = answers.at_each_rate(rows)
    assert [*table.columns] == ["case", "method", "2", "16"]
    assert table["method"].tolist() == [WARM, LARS]
    assert table["16"].tolist() == ["66.0", "66.0"]


def test_the_tables_of_the_page_are_those_of_the_committed_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.results()) == text
    assert all(f"<!-- table: {name} -->" in text for name in answers.TABLES)


@pytest.mark.slow
def test_a_case_is_trained_in_stages_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**CASES["digits-512"].options, "limit": "64", "bs": "32", "epochs": "4", "model": "mlp"}
    monkeypatch.setitem(CASES, "digits-512", experiments.Case("digits-512", small))
    monkeypatch.setattr(experiments, "DELAYED", ())
    monkeypatch.setattr(experiments, "SEEDS", (0, 1))
    for _, trials in experiments.stages(["digits-512"], tmp_path):
        train(trials, tmp_path, 1)
    rows = results_of(groups(["digits-512"], tmp_path))
    assert len(rows) == len(METHODS) * (BUDGET + 2)
    best = rows[(rows["purpose"] == SEARCH) & (rows["method"] == LARS)].set_index("peak_lr")["held_out_accuracy"]
    taken = rows[(rows["purpose"] == OF_SEEDS) & (rows["method"] == LARS)]
    assert best[taken["peak_lr"].iloc[0]] == best.max()
    assert taken["adaptive_end"].notna().all()
    assert len(answers.gains(rows, WARM, LARS)) == 1


def test_the_clamped_variant_is_lars_where_no_norm_exceeds_ten(tmp_path: Path) -> None:
    settings = {name: (value,) for name, value in experiments.CLAMPED.items()}
    (trial,) = build_trials(Grid(settings=settings), tmp_path)
    optimizer = trial.config.optimizer
    assert optimizer.eta / (optimizer.alpha + 1) == pytest.approx(0.001)
