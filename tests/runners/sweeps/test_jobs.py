"""Jobs of submitit: what is asked of slurm, and what becomes of a job at its time limit."""

from __future__ import annotations

import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import tvlars_probe
from tests.ranked import cli_on_ranks
from tests.runners.launching.test_stop_signals import STEP_BY_STEP, ignores
from tests.runners.resumed import assert_same_run
from tests.runners.test_ranks import wait_for
from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.errors import InterruptedRunError, RunFailedError
from tvlars_probe.runners.sweeps import jobs
from tvlars_probe.runners.sweeps.grid import Grid
from tvlars_probe.runners.sweeps.jobs import TrialInJob, parameters
from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan
from tvlars_probe.runners.sweeps.sweep import sweep
from tvlars_probe.runners.sweeps.trials import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

submitit = pytest.importorskip("submitit")


def test_slurm_is_asked_for_what_a_run_needs() -> None:
    one = parameters(LaunchPlan(launcher="slurm", gpus=4, minutes=30, partition="gpu", cpus=8))
    assert one == {"timeout_min": 30, "nodes": 1, "gpus_per_node": 4, "tasks_per_node": 1, "cpus_per_task": 32,
                   "slurm_partition": "gpu", "slurm_signal_delay_s": 90,
                   "slurm_additional_parameters": {"requeue": True}}  # fmt: skip
    two = parameters(LaunchPlan(launcher="slurm", gpus=4, nodes=2))
    assert (two["nodes"], two["tasks_per_node"]) == (2, 4)


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 30), (2, 60), (3, 90), (1440, 90)])
def test_the_signal_leaves_half_of_a_short_limit_for_work(minutes: int, seconds: int) -> None:
    assert parameters(LaunchPlan(launcher="slurm", minutes=minutes))["slurm_signal_delay_s"] == seconds


class Requeued(SystemExit):
    """What submitit's handler raises when it has queued a job again."""


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """This process is a job whose task has a rank; submitit's handlers are those for a preempted or timed out job."""
    monkeypatch.setenv(jobs.IS_CHILD, "")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}

    def be_job(cluster: str = "slurm", rank: int = 0) -> None:
        def requeue(number: int, frame: Any) -> None:
            if rank == 0:
                raise Requeued(144)

        environment = SimpleNamespace(num_tasks=1, cluster=cluster, global_rank=rank)
        monkeypatch.setattr(
            submitit, "JobEnvironment", type("Job", (), {"USR_SIG": "USR2", "__new__": lambda _: environment})
        )
        signal.signal(signal.SIGUSR2, requeue)
        signal.signal(signal.SIGTERM, lambda *_: None)  # submitit passes over it

    yield be_job
    for number, handler in before.items():
        signal.signal(number, handler)


def trains(monkeypatch: pytest.MonkeyPatch, *signals: int) -> list[int]:
    """While a job trains, ``signals`` come to it; the run's own handler hears SIGTERM, and it ends in order."""
    heard: list[int] = []

    def carry_out(*_: Any) -> Outcome:
        idle = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        for number in signals:
            os.kill(os.getpid(), number)
        signal.signal(signal.SIGTERM, idle)
        if heard:
            raise InterruptedRunError(heard[0])
        return Outcome(status="completed")

    monkeypatch.setattr(jobs, "carry_out", carry_out)
    return heard


def test_at_slurms_signal_the_run_ends_in_order_before_the_job_is_queued_again(
    tmp_path: Path, in_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job()
    handler = signal.getsignal(signal.SIGUSR2)
    heard = trains(monkeypatch, signal.SIGUSR2)
    with pytest.raises(Requeued):
        TrialInJob({}, tmp_path, (), 30)()
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGUSR2) == handler


def test_preemption_sends_two_signals_and_queues_the_job_again(
    tmp_path: Path, in_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job()
    trains(monkeypatch, signal.SIGCONT, signal.SIGTERM, signal.SIGUSR2)
    with pytest.raises(Requeued):
        TrialInJob({}, tmp_path, (), 30)()


def test_a_cancelled_job_ends_without_a_result_under_slurm_and_is_not_queued_again(
    tmp_path: Path, in_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job()
    trains(monkeypatch, signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        TrialInJob({}, tmp_path, (), 30)()
    assert ended.value.code == 143


@pytest.mark.parametrize(("cluster", "rank"), [("local", 0), ("slurm", 1)])
def test_other_tasks_and_local_jobs_return(
    tmp_path: Path, in_job: Any, monkeypatch: pytest.MonkeyPatch, cluster: str, rank: int
) -> None:
    in_job(cluster, rank)
    trains(monkeypatch, signal.SIGTERM, *([signal.SIGUSR2] if rank else []))
    assert TrialInJob({}, tmp_path, (), 30)() == Outcome(status="new")


def test_a_signal_outside_of_the_steps_queues_the_job_again_at_once(
    tmp_path: Path, in_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job()
    monkeypatch.setattr(jobs, "carry_out", lambda *_: os.kill(os.getpid(), signal.SIGUSR2))
    with pytest.raises(Requeued):
        TrialInJob({}, tmp_path, (), 30)()


def test_jobs_that_come_to_no_checkpoint_are_not_queued_for_ever(
    tmp_path: Path, in_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_job()
    trains(monkeypatch)
    job = TrialInJob({}, tmp_path, (), 30)

    def next_job(checkpoint: int | None) -> TrialInJob:
        job()
        if checkpoint is not None:
            (tmp_path / "checkpoints").mkdir(exist_ok=True)
            (tmp_path / "checkpoints" / f"step-{checkpoint}.pt").touch()
        return pickle.loads(pickle.dumps(job.checkpoint().function))  # type: ignore[no-any-return]

    for checkpoint, fruitless in ((None, 1), (None, 2), (3, 0), (3, 1), (7, 0), (7, 1), (7, 2)):
        job = next_job(checkpoint)
        assert job.fruitless == fruitless
    with pytest.raises(
        RunFailedError, match="3 jobs in a row ended before a checkpoint; give them longer than --time 30"
    ):
        next_job(7)


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_queued_again_and_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit's local job of a minute, which sends its signal after 30 seconds: the second step lasts until then."""
    words = "--opt tvlars --limit 96 --bs 32 --epochs 3 --devices cpu --threads 1 --train-eval-samples 32 --seed 3"
    cli_on_ranks(1, "train", *words.split(), "--run-dir", "whole", cwd=tmp_path)
    (tmp_path / "sitecustomize.py").write_text(STEP_BY_STEP)
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(jobs, "parameters", lambda _: {"timeout_min": 1, "gpus_per_node": 0})
    pairs = zip(*[iter(words.replace("--", "").split())] * 2, strict=True)
    (trial,) = build_trials(Grid(settings={name: (value,) for name, value in pairs}), tmp_path / "s")
    (tmp_path / "go0").touch()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(sweep, [trial], LaunchPlan(launcher="local"), tmp_path / "s", lambda *_: None)
        wait_for(lambda: found.done() or [*tmp_path.glob("rank0-step1-*")])
        pids = [int(place.name.rpartition("pid")[2]) for place in tmp_path.glob("rank0-step1-*")]
        wait_for(lambda: all(ignores(pid) for pid in pids))
        (tmp_path / "go").touch()
        (outcome,) = found.result(timeout=300)
    assert outcome.status == "completed", outcome
    first, second = tvlars_probe.open_run(trial.path).manifest.segments
    assert (first["last_step"], second["first_step"]) == (1, 2)
    assert_same_run(tmp_path / "whole", trial.path)
