"""What a sweep says on its way, by a clock of the test's own."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvlars_probe.commands.sweep_progress import SweepProgress
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.sweeps.trials import Outcome, Trial

if TYPE_CHECKING:
    import pytest

DONE = Outcome(status="completed", best_test_acc1=91.234)


def trial(lr: int) -> Trial:
    return Trial(config=TrainConfig(), path=Path(f"s/{lr}"), point={"lr": str(lr)})


def watched(**settings: Any) -> tuple[SweepProgress, list[float]]:
    """The progress of four runs, and its time, which a test sets."""
    time = [0.0]
    evening = datetime(2026, 3, 1, 23, 0)
    return SweepProgress(4, seconds=lambda: time[0], now=lambda: evening, **settings), time


def test_what_trains_is_said_and_when_all_will_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress, time = watched()
    progress.ended(trial(0), DONE)  # finished before: it tells nothing of how long a run takes
    assert progress.begins(trial(1)) == "2/4  lr=1"
    time[0] = 600.0
    progress.ended(trial(1), DONE)
    # Ten minutes a run, two to come.
    assert progress.begins(trial(2)) == "3/4  lr=2  (all done at about 23:20)"
    time[0] = 600.0 + 3000.0
    progress.ended(trial(2), Outcome(status="failed", error="no\nroom"))
    # The failed run's length doesn't count.
    assert progress.begins(trial(3)) == "4/4  lr=3  (all done at about 23:10)"
    assert capsys.readouterr().out.splitlines() == [
        "1/4  lr=0  completed  best test acc 91.23 %",
        "Training 2/4  lr=1",
        "2/4  lr=1  completed  best test acc 91.23 %",
        "Training 3/4  lr=2  (all done at about 23:20)",
        "3/4  lr=2  failed  no room",
        "Training 4/4  lr=3  (all done at about 23:10)",
    ]
    assert progress.advice().startswith("Interrupted: 2 of 4 runs finished; the same command goes on")


def test_the_next_day_has_its_date_and_jobs_share_the_work() -> None:
    progress, time = watched(jobs=2)
    progress.begins(trial(0))
    progress.begins(trial(1))
    time[0] = 7200.0
    progress.ended(trial(0), DONE)
    # Two hours a run, three to come, two at once.
    assert progress.begins(trial(2)) == "3/4  lr=2  (all done at about Mar 02 02:00)"


def test_a_run_that_another_process_took_over_tells_nothing_of_lengths() -> None:
    progress, time = watched()
    progress.begins(trial(0))
    progress.waits([trial(0)])
    time[0] = 7200.0
    progress.ended(trial(0), DONE)
    assert progress.begins(trial(1)) == "2/4  lr=1"


def test_above_a_bar_nothing_more_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    progress, _ = watched(has_bar=True)
    assert progress.begins(trial(0)) == "1/4  lr=0"
    assert capsys.readouterr().out == ""
