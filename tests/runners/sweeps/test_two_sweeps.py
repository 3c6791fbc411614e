"""Two sweeps over one grid: each run is trained by one of them, and both report all."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.two_sweeps import at_once
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.sweeps import agenda, sweep
from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan
from tvlars_probe.runners.sweeps.trials import Outcome, Trial, outcome
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path

HERE = LaunchPlan()


def trials_in(folder: Path, number: int) -> list[Trial]:
    config = TrainConfig()
    return [Trial(config=config, path=folder / f"run-{i}", point={"lr": str(i)}) for i in range(number)]


def write(path: Path, status: str, *notes: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(run_id=path.name)
    manifest.status, manifest.notes = status, [*notes]
    manifest.save(path)


class Other:
    """Another process that trains the run at ``path``."""

    def __init__(self, path: Path) -> None:
        write(path, "running")
        self._path, self._directory = path, RunDirectory.hold(path)

    def end(self, status: str, *notes: str) -> None:
        write(self._path, status, *notes)
        self._directory.release()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that sweeps train here, which are completed at once."""
    names: list[str] = []

    def complete(config: Any, path: Path, command: Any, heading: str) -> Outcome:
        names.append(path.name)
        write(path, "completed")
        return outcome(path)

    monkeypatch.setattr(sweep, "carry_out", complete)
    return names


def waiting_sweep(
    monkeypatch: pytest.MonkeyPatch, trials: list[Trial], folder: Path, *meanwhile: Any
) -> tuple[list[str], list[list[str]]]:
    """The statuses that a sweep reports, and what it waited for; at each pause the next of ``meanwhile`` is called."""
    events, waited = iter(meanwhile), list[list[str]]()
    monkeypatch.setattr(agenda, "time", SimpleNamespace(sleep=lambda _: next(events)()))
    found = sweep.sweep(
        trials, HERE, folder, lambda *_: None, lambda open_: waited.append([t.path.name for t in open_])
    )
    assert next(events, None) is None
    return [result.status for result in found], waited


def test_runs_of_others_are_left_to_them_and_waited_for_at_the_end(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = trials_in(tmp_path, 3)
    others = [Other(trials[0].path), Other(trials[1].path)]
    states, waited = waiting_sweep(
        monkeypatch,
        trials,
        tmp_path,
        lambda: None,
        lambda: others[1].end("diverged"),
        lambda: others[0].end("completed"),
    )
    assert states == ["completed", "diverged", "completed"]
    assert trained == ["run-2"]
    assert waited == [["run-0", "run-1"]]  # said once


@pytest.mark.parametrize("left", ["running", "interrupted"])
def test_runs_of_a_sweep_that_dies_are_taken_over(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    trials = trials_in(tmp_path, 2)
    other = Other(trials[0].path)
    states, _ = waiting_sweep(monkeypatch, trials, tmp_path, lambda: other.end(left))
    assert states == ["completed", "completed"]
    assert trained == ["run-1", "run-0"]


def test_a_run_that_fails_elsewhere_meanwhile_is_reported_and_not_tried_twice(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = trials_in(tmp_path, 1)
    other = Other(trial.path)
    states, _ = waiting_sweep(monkeypatch, [trial], tmp_path, lambda: other.end("failed", "no room"))
    assert (states, trained) == (["failed"], [])


def test_a_run_that_had_failed_before_is_tried_again_once(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = trials_in(tmp_path, 1)
    write(trial.path, "failed", "no room")
    assert waiting_sweep(monkeypatch, [trial], tmp_path)[0] == ["completed"]
    assert trained == ["run-0"]


def test_what_another_sweep_has_in_a_queue_is_left_to_it_until_that_sweep_dies(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = trials_in(tmp_path, 2)
    other = agenda.Agenda(trials, tmp_path, lambda *_: None, lambda _: None)
    assert other.take(trials[0])
    states, waited = waiting_sweep(monkeypatch, trials, tmp_path, lambda: None, other.close)
    assert states == ["completed", "completed"]
    assert trained == ["run-1", "run-0"]
    assert waited == [["run-0"]]


def test_two_sweeps_in_step_train_each_run_once_and_report_all(tmp_path: Path, trained: list[str]) -> None:
    trials, reports, start = trials_in(tmp_path, 12), dict[str, list[str]](), threading.Barrier(2)

    def run(name: str) -> None:
        start.wait()
        reports[name] = [result.status for result in sweep.sweep(trials, HERE, tmp_path, lambda *_: None)]

    both = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=60)
    assert reports == {"a": ["completed"] * 12, "b": ["completed"] * 12}
    assert sorted(trained) == sorted(trial.path.name for trial in trials)


def test_a_run_whose_manifest_cannot_be_read_is_one_failed_run(tmp_path: Path) -> None:
    (trial,) = trials_in(tmp_path, 1)
    trial.path.mkdir()
    (trial.path / "run.json").write_text("{")
    now = outcome(trial.path)
    assert now.status == "failed"
    assert "run.json" in (now.error or "")


@pytest.mark.slow
@pytest.mark.parametrize("launchers", [("inline", "local"), ("local", "local")], ids="-".join)
def test_two_sweeps_at_once_report_every_run_as_finished(tmp_path: Path, launchers: tuple[str, str]) -> None:
    result = at_once(tmp_path, *launchers)
    assert result.codes == (0, 0), result.outputs
    assert result.faults == []
