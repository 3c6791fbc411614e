"""What torchrun's ranks agree on before they are a process group, in a store that holds what dead ranks left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import RunDirectoryError, RunFailedError
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.launching import meeting
from tvlars_probe.runners.launching.meeting import Meeting, agree
from tvlars_probe.runners.planning import Job, plan_run
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path


def agree_in_threads(store: Any, counts: list[int]) -> list[tuple[str, int]]:
    """What each rank finds, if rank 0 comes last."""
    with ThreadPoolExecutor(len(counts)) as pool:
        ranks = reversed(range(len(counts)))
        found = [pool.submit(agree, store, rank, len(counts), counts[rank]) for rank in ranks]
        return [future.result(timeout=60) for future in found]


def test_ranks_whose_agents_count_differently_agree_on_one_attempt() -> None:
    found = agree_in_threads(HashStore(), [0, 2, 1])
    assert len({attempt for attempt, _ in found}) == 1
    assert [most for _, most in found] == [2, 2, 2]


def test_every_attempt_in_one_store_has_a_name_of_its_own() -> None:
    store = HashStore()
    names = [{attempt for attempt, _ in agree_in_threads(store, [0, 0])} for _ in range(3)]
    assert [len(one) for one in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


def test_words_and_answers_of_dead_ranks_mislead_nobody() -> None:
    store = HashStore()
    store.set("word/1", "said by a rank that died before it was answered")
    store.set("word/2", "said by a rank that was answered")
    store.set("answer/said by a rank that was answered", "an attempt whose first rank died")
    store.set("an attempt whose first rank died/2", "9")
    found = agree_in_threads(store, [1, 0, 0])
    assert len({*found}) == 1
    assert found[0][0] != "an attempt whose first rank died"
    assert found[0][1] == 1


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "TIMEOUT", timedelta(0))
    store = HashStore()
    store.set("word/1", "said by a rank that died")
    with pytest.raises(RunFailedError, match="ranks that didn't come within 0 minutes: 1, 2"):
        agree(store, 0, 3, 0)


@pytest.mark.parametrize("values", [{}, {"TORCHELASTIC_RESTART_COUNT": ""}, {"TORCHELASTIC_RESTART_COUNT": "2"}])
def test_one_rank_without_an_agent_meets_nobody(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", **values}.items():
        monkeypatch.setenv(name, value)
    assert meeting.meet().restarted == ("2" in values.values())


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """`plan_run` of a small run at ``run``, in the meeting that is given."""
    config = TrainConfig(data=DataConfig(limit=64), place=PlaceConfig(devices=("cpu",)), batch_size=32, epochs=1)
    data = config.data.load(0)
    return lambda met, **how: plan_run(config, tmp_path / "run", data=data, world_size=1, meeting=met, **how)


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives the meeting of a later attempt, whose ranks are other processes."""

    def next_attempt(met: Meeting) -> Meeting:
        monkeypatch.setattr(meeting, "_THIS_PROCESS", f"{meeting._THIS_PROCESS}-restarted")
        return Meeting(store=HashStore(), memory=met.memory)

    return next_attempt


def launched() -> Meeting:
    """The first attempt of a launch by torchrun."""
    return Meeting(store=HashStore(), memory=HashStore())


def leave_a_run(job: Job, status: str) -> None:
    """What a rank leaves behind that began ``job``."""
    job.path.mkdir(parents=True)
    manifest = Manifest(run_id=job.run_id, config_id=job.config_id)
    manifest.status = status
    manifest.save(job.path)


def test_a_failed_run_is_continued_by_the_restart_of_the_launch_that_began_it(plan: Any, restarted: Any) -> None:
    first = launched()
    leave_a_run(plan(first), "failed")
    with pytest.raises(RunDirectoryError, match="--resume"):
        plan(launched())
    assert plan(restarted(first)).continues


def test_a_refused_launch_stays_refused_when_it_is_restarted(plan: Any, restarted: Any) -> None:
    leave_a_run(plan(launched()), "failed")
    first = launched()
    for met in (first, restarted(first)):
        with pytest.raises(RunDirectoryError, match="--resume"):
            plan(met)


def test_a_restarted_rerun_goes_on_with_the_run_that_it_began(plan: Any, restarted: Any, tmp_path: Path) -> None:
    leave_a_run(plan(launched()), "completed")
    first = launched()
    begun = plan(first, rerun=True)
    assert begun.path == tmp_path / "run-2"
    # Restarted before the run was begun, and after.
    assert plan(restarted(first), rerun=True).path == begun.path
    leave_a_run(begun, "failed")
    again = plan(restarted(first), rerun=True)
    assert (again.path, again.continues) == (begun.path, True)
    assert plan(launched(), rerun=True).path == tmp_path / "run-3"
