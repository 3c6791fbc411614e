"""One follower of a run for all its pages; they are told only what has changed."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.board.runs import HOSTILE, TrainedRun, damage
from tvlars_probe.board import following
from tvlars_probe.board.following import Followed, Following
from tvlars_probe.errors import RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

PARTS = {"findings", "state", "furthest", "sharpness"}


def at_once(_: str) -> float:
    return 0.0


def never(_: str) -> float:
    return float("inf")


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time need pass between two renewals."""
    monkeypatch.setattr(following, "AT_LEAST", {"charts": 0.0, "sections": 0.0})


@pytest.mark.usefixtures("unhurried")
def test_the_first_look_tells_everything_and_the_next_what_has_changed(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "a").train(10)
    followed = Followed(tmp_path, run.path, at_once)
    first = followed.look()
    assert {*first} == {*PARTS, "said", "charts", "sections"}
    assert "10 of 100" in first["state"]
    assert followed.look() == {}
    run.train(10)
    told = followed.look()
    assert {*told} == {"state", "furthest", "charts", "sections"}
    assert "20 of 100" in told["state"]
    assert (told["charts"], told["sections"]) == (2, 2)
    run.train(1, finding="the loss jumped")
    told = followed.look()
    assert "the loss jumped" in told["findings"]
    assert told["said"] == "running; 1 finding, the newest in step 20"
    run.end(None)
    assert "killed" in followed.look()["state"]


@pytest.mark.usefixtures("unhurried")
def test_slow_parts_wait_until_they_are_due(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "a").train(10)
    due: list[float] = [0.0]
    followed = Followed(tmp_path, run.path, lambda _: due[0])
    assert followed.look()["charts"] == 1
    due[0] = float("inf")
    run.train(1)
    assert {"charts", "sections"} & {*followed.look()} == set()
    due[0] = 0.0
    assert followed.look() == {"charts": 2, "sections": 2}  # no row has come since
    assert followed.look() == {}
    run.end()


def test_slow_parts_are_told_of_at_intervals_and_once_more_when_the_run_has_ended(tmp_path: Path) -> None:
    run = TrainedRun(tmp_path / "a").train(10)
    due: list[float] = [0.0]
    followed = Followed(tmp_path, run.path, lambda _: due[0])
    assert followed.look()["sections"] == 1
    run.train(1)
    assert "sections" not in followed.look()  # it was told of a moment ago
    run.end()
    due[0] = float("inf")  # an earlier state of it is being made
    assert "sections" not in followed.look()
    due[0] = 1e12
    assert followed.look() == {"charts": 2, "sections": 2}


def test_charts_are_made_anew_of_a_run_that_has_replaced_another_of_the_same_length(tmp_path: Path) -> None:
    path = TrainedRun(tmp_path / "a").train(10).end()
    followed = Followed(tmp_path, path, at_once)
    followed.look()
    shutil.rmtree(path)
    TrainedRun(path, run_id="other.1").train(10).end()
    told = followed.look()
    assert (told["charts"], told["sections"]) == (2, 2)


def test_a_page_that_is_opened_later_is_told_what_is_known(tmp_path: Path) -> None:
    followed = Followed(tmp_path, TrainedRun(tmp_path / "a").train(10).end(), never)
    early = followed.join()
    assert not early.changed.is_set()
    followed.tell(followed.look())
    told, late = early.take(), followed.join()
    assert late.take() == told
    assert {*told} == {*PARTS, "said", "charts", "sections"}
    assert early.take() == {}
    followed.leave(early)
    assert followed.is_wanted
    followed.leave(late)
    assert not followed.is_wanted


def test_news_that_came_twice_is_sent_once(tmp_path: Path) -> None:
    followed = Followed(tmp_path, tmp_path / "a", never)
    listener = followed.join()
    for value in (1, 2):
        followed.tell({"charts": value})
    assert listener.take() == {"charts": 2}


@pytest.mark.parametrize("kind", ["damaged", "gone", "empty"])
def test_a_run_that_cannot_be_read_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "damaged":
        damage(path)
    elif kind == "empty":
        TrainedRun(path).end("failed")
    told = Followed(tmp_path, path, at_once).look()
    assert {*told} >= PARTS
    assert {"damaged": "damaged", "gone": "gone", "empty": "failed"}[kind] in told["state"]


def test_a_run_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    outside = TrainedRun(tmp_path / "outside").train(3).end()
    run = TrainedRun(tmp_path / "runs" / "a").end()
    (run / "trace").symlink_to(outside / "trace")

    async def use(follow: Following) -> dict[str, Any]:
        joined = follow.join("a", run)
        assert joined is not None
        followed, listener = joined
        await listener.changed.wait()
        followed.leave(listener)
        return listener.take()

    assert "leads out" in with_following(tmp_path / "runs", use)["state"]


@pytest.mark.parametrize("what", ["", "trace", "trace/steps", "trace/layers"])
def test_a_link_that_appears_while_a_run_is_followed_is_refused(tmp_path: Path, what: str) -> None:
    run = TrainedRun(tmp_path / "runs" / "a").train(3)
    followed = Followed(tmp_path / "runs", run.path, at_once)
    assert "3 of 100" in followed.look()["state"]
    run.train(4)
    outside = (run.path / what).rename(tmp_path / "outside")
    (run.path / what).symlink_to(outside)
    with pytest.raises(RunDirectoryError, match=r"leads? out"):
        followed.look()
    run.end(None)


def test_a_failure_is_told_once_and_taken_back_when_it_has_passed(tmp_path: Path) -> None:
    followed = Followed(tmp_path, TrainedRun(tmp_path / "a").train(10).end(), at_once)
    first = followed.look()
    assert "can't be followed" in followed.fail(RuntimeError("why"))["state"]
    assert followed.fail(RuntimeError("why")) == {}
    assert "can't be followed" in followed.join().take()["state"]
    told = followed.look()
    assert {name: told[name] for name in PARTS} == {name: first[name] for name in PARTS}
    assert followed.look() == {}


def with_following(folder: Path, use: Callable[[Following], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        follow = Following(folder, lambda key, name: 0.0)
        try:
            return await asyncio.wait_for(use(follow), 60)
        finally:
            follow.close()

    return asyncio.run(main())


def test_pages_share_a_follower_which_ends_with_the_last_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.0)
    run = TrainedRun(tmp_path / "a").train(5)

    async def use(follow: Following) -> None:
        pairs = [follow.join("a", run.path) for _ in range(3)]
        assert len(follow) == 1
        assert len({id(pair[0]) for pair in pairs if pair}) == 1
        for pair in pairs:
            assert pair is not None
            await pair[1].changed.wait()
            assert "5 of 100" in pair[1].take()["state"]
        run.train(5)
        for pair in pairs:
            assert pair is not None
            await pair[1].changed.wait()
            assert "10 of 100" in pair[1].take()["state"]
            pair[0].leave(pair[1])
        while len(follow):
            await asyncio.sleep(0)

    with_following(tmp_path, use)
    run.end()


def test_an_error_that_nobody_expected_is_told_and_the_next_look_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainedRun(tmp_path / "a").train(5)
    monkeypatch.setattr(following, "IDLE_INTERVAL", 0.0)
    look, broken = Followed.look, [True]

    def once(self: Followed) -> dict[str, Any]:
        if broken:
            broken.clear()
            raise RuntimeError(HOSTILE)
        return look(self)

    monkeypatch.setattr(Followed, "look", once)

    async def use(follow: Following) -> list[str]:
        pair = follow.join("a", run.path)
        assert pair is not None
        told = []
        for _ in range(2):
            await pair[1].changed.wait()
            told.append(pair[1].take()["state"])
        pair[0].leave(pair[1])
        return told

    first, second = with_following(tmp_path, use)
    assert "can't be followed" in first
    assert "<script" not in first
    assert "5 of 100" in second
    run.end()


def test_only_so_many_runs_are_followed(tmp_path: Path) -> None:
    async def use(follow: Following) -> Any:
        held = [follow.join(str(i), tmp_path / str(i)) for i in range(following.MOST_FOLLOWED)]
        assert all(held)
        assert follow.join("0", tmp_path / "0") is not None
        return follow.join("more", tmp_path / "more")

    assert with_following(tmp_path, use) is None
