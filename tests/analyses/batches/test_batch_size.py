"""Three answers side by side: where they agree, where they don't, and what is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from tests.analyses.batches.noise_rows import probe
from tests.noisy import measured, with_noise
from tvlars_probe.analyses.batches import batch_size
from tvlars_probe.analyses.batches.batch_size import DISAGREE, BatchSizeAnswers, batch_size_of, side_by_side
from tvlars_probe.analyses.batches.noise_scale import LAYER_COLUMNS, NoiseScale, analyse_noise
from tvlars_probe.analyses.facts import RunFacts
from tvlars_probe.analyses.source import Source
from tvlars_probe.analyses.verdict import Verdict, plain
from tvlars_probe.errors import UserError
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAID = Verdict("?", "!", "because")


@dataclass(frozen=True)
class Bounds:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Time:
    """Stands in for the analysis of the time to a target."""

    b_crit: Bounds
    s_min: Bounds = Bounds(10.0, 9.0, 11.0)
    e_min: Bounds = Bounds(1000.0, 900.0, 1100.0)
    level: float = 0.95
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    doubts: tuple[str, ...] = ()
    verdict: Verdict = SAID


@dataclass(frozen=True)
class Branched:
    """Stands in for the analysis of branches."""

    largest_free: float | None
    smallest_costly: float | None
    step: int = 40
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    doubts: tuple[str, ...] = ()
    verdict: Verdict = SAID


def scale(value: float, error: float, *, unit: str = "samples", name: str = "a") -> NoiseScale:
    """A noise scale from a probe with this value and standard error."""
    row = probe(7, 1.0, value, (1e-6, error), unit=unit)
    return analyse_noise(row, pd.DataFrame(columns=list(LAYER_COLUMNS)), RunFacts(name=name, batch_size=64))


def answers(*noise: NoiseScale, time: Any = None, branches: Any = None) -> BatchSizeAnswers:
    return side_by_side(noise, time, branches, runs=12, branched=5)


def test_answers_whose_intervals_overlap_share_a_range() -> None:
    result = answers(
        scale(100, 10), time=Time(Bounds(150.0, 90.0, 300.0)), branches=Branched(64.0, 512.0)
    )  # fmt: skip
    assert result.verdict.answer == "90 to 120 samples"
    assert result.verdict.reason.startswith("the 3 answers share this range: noise scale (a, step 7): 100 (95 %: ")
    assert result.table["answer"].tolist() == ["noise scale", "time to target", "branches"]
    assert result.table["of"].tolist() == ["a", "12 runs", "5 runs"]
    assert result.table["told"].tolist()[2] == "64 costs nothing that can be told, 512 costs for sure"
    assert result.verdict["low"] == 90


def test_answers_that_lie_apart_disagree_and_name_what_to_doubt() -> None:
    result = answers(scale(20, 1), time=Time(Bounds(150.0, 90.0, 300.0), doubts=("one seed only",)))
    assert result.verdict.answer == DISAGREE
    assert "the intervals of noise scale and time to target lie apart" in result.verdict.reason
    told = " ".join(result.doubts)
    assert "time to target: one seed only" in told
    assert "the noise scale assumes SGD with small steps" in told
    assert "needs the best rate at each batch" in told
    assert "branches are of one moment" not in told


@pytest.mark.parametrize(
    ("branches", "answer", "told"),
    [
        (Branched(128.0, None), "128 samples at least", "128 costs nothing that can be told"),
        (Branched(None, 512.0), "512 samples at most", "512 costs for sure"),
        (Branched(None, None), "can't tell", "unknown"),
    ],
    ids=["none costs", "all cost", "unknown"],
)
def test_branches_alone_give_a_bound(branches: Branched, answer: str, told: str) -> None:
    result = answers(branches=branches)
    assert result.verdict.answer == answer
    assert result.table["told"].tolist() == [told]


def test_branches_that_cost_below_the_critical_batch_contradict_nothing() -> None:
    """Where E = E_min·(1 + B/B_crit) holds exactly, 5 % more loss lies far below the batch that takes 2·E_min."""
    critical, sizes = 150.0, np.array([4, 8, 16, 32, 64])
    loss = np.exp(-1 / (1 + sizes / critical))  # progress by samples: E/E_min = 1
    costly = float(sizes[loss > 1.05 * loss[0]][0])
    assert costly == 16
    result = answers(scale(critical, 5), branches=Branched(8.0, costly))
    assert result.verdict.answer == "140 to 160 samples"
    apart = answers(scale(critical, 5), branches=Branched(512.0, 1024.0))
    assert apart.verdict.answer == DISAGREE
    assert any("where samples begin to cost lies below the critical batch" in doubt for doubt in apart.doubts)


def test_what_is_unknown_is_said_to_be() -> None:
    result = answers(time=Time(Bounds(math.nan, math.nan, math.nan)))
    assert result.verdict.answer == "can't tell"
    assert result.table["told"].tolist() == ["unknown"]
    assert answers().verdict.reason == "none of the three answers is on record."
    point = answers(time=Time(Bounds(150.0, math.nan, math.nan)))
    assert point.table["told"].tolist() == ["150 (its error is unknown)"]
    assert point.verdict.answer == "can't tell"


def test_noise_in_tokens_is_not_compared_with_samples() -> None:
    result = answers(scale(1e5, 1e3, unit="tokens"), time=Time(Bounds(150.0, 90.0, 300.0)))
    assert result.verdict.answer == "90 to 300 samples"
    assert "a noise scale in tokens isn't compared with answers in samples" in result.doubts


def test_noise_of_several_runs_is_one_answer_over_their_span() -> None:
    result = answers(scale(100, 1), scale(300, 1, name="b"))
    assert result.verdict.answer == "98 to 302 samples"
    assert "one answer" in result.verdict.reason


def test_runs_of_several_models_have_no_one_answer(trained: Callable[..., Path], tmp_path: Path) -> None:
    sources = [source(with_noise(trained(name), tmp_path / name)) for name in ("sgd", "lars")]
    assert batch_size_of(sources).verdict.answer != "can't tell"
    object.__setattr__(sources[1].facts, "model", "resnet18")
    result = batch_size_of(sources)
    assert result.verdict.answer == "can't tell"
    assert "the runs are of several models (" in result.verdict.reason
    assert "noise scale (" in result.verdict.reason


def test_everything_becomes_json() -> None:
    assert plain(answers(scale(100, 10), branches=Branched(64.0, None)))["table"][1]["high"] is None


def source(run: Path) -> Source:
    return Source(open_run(run))


def test_a_run_without_noise_tells_what_each_answer_lacks(trained: Callable[..., Path]) -> None:
    result = batch_size_of([source(trained("sgd"))])
    assert len(result.table) == 0
    assert [text.partition(":")[0] for text in result.missing] == ["noise scale", "time to target", "branches"]
    assert "batch-size RUN --checkpoint last" in result.missing[0]


def test_a_recorded_run_is_answered_by_its_noise(trained: Callable[..., Path], tmp_path: Path) -> None:
    run = with_noise(trained("sgd"), tmp_path)
    result = batch_size_of([source(run)])
    (noise,) = result.noise
    assert (noise.window, noise.batch, noise.unit) == (30, 48.0, "samples")
    assert noise.verdict.answer == "below"
    assert {*noise.layers["parameter"]} == {*noise.facts.parameters["name"]}
    assert len(result.missing) == 2
    measured(run, 40)
    after = batch_size_of([source(run)], window=10).noise[0]
    assert (after.window, after.curve["source"].iloc[-1], after.verdict.answer) == (10, "probe", "beyond")


def test_a_sweep_and_branches_are_asked_for_theirs(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [source(trained("sgd")), source(trained("lars")), source(trained("tvlars"))]
    sizes = iter([16, 32])
    for run in runs[:2]:
        object.__setattr__(run.facts, "batch_size", next(sizes))
    asked: dict[str, Any] = {}

    def time_to_target(sources: Any, **settings: Any) -> Time:
        asked["time"] = ([s.facts.name for s in sources], settings)
        return Time(Bounds(150.0, 90.0, 300.0))

    def branches_of(sources: Any) -> Branched:
        asked["branches"] = len(sources)
        raise UserError("a branch lacks its parent")

    monkeypatch.setattr(batch_size, "time_to_target", time_to_target)
    monkeypatch.setattr(batch_size, "branches_of", branches_of)
    monkeypatch.setattr(batch_size, "is_branch", lambda s: s is runs[2])
    result = batch_size_of(runs, target=0.5, seed=3)
    assert asked["time"] == ([run.facts.name for run in runs[:2]], {"target": 0.5, "seed": 3})
    assert asked["branches"] == 3
    assert result.table["of"].tolist() == ["2 runs"]
    assert "branches: a branch lacks its parent" in result.missing
