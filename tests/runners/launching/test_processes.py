"""Signals that come while ranks are being started."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tvlars_probe.runners.launching import processes as launching
from tvlars_probe.runners.launching.stop_signals import IS_CHILD

if TYPE_CHECKING:
    import pytest


@dataclass
class Child:
    pid: int
    told: list[str] = field(default_factory=list)

    def terminate(self) -> None:
        self.told.append("terminate")

    def kill(self) -> None:
        self.told.append("kill")


def test_ranks_that_start_after_a_signal_are_told_of_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[Child] = []
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [*there])
    with launching._forwarding(2) as (signals, pass_on):
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == [signal.SIGTERM]
        for pid in (1, 2):
            there.append(Child(pid))
            pass_on()
            pass_on()
        assert [child.told for child in there] == [["terminate"], ["terminate"]]
        os.kill(os.getpid(), signal.SIGTERM)
        pass_on()
    assert [child.told for child in there] == [["terminate", "kill"]] * 2
    assert signal.getsignal(signal.SIGTERM) is not None


def test_in_a_job_a_later_signal_does_not_kill_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preemption sends several. The scheduler kills what doesn't end."""
    child = Child(1)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [child])
    monkeypatch.setenv(IS_CHILD, "1")
    with launching._forwarding(1) as (signals, _):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signals, child.told) == ([signal.SIGTERM], ["terminate"])
    assert os.environ[IS_CHILD] == "1"


def test_ranks_do_not_die_of_what_a_scheduler_sends_to_all_processes_of_a_job() -> None:
    """Processes that a thread starts have its mask."""
    blocked = launching._in_thread(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()), meanwhile=lambda: None)
    assert {signal.SIGUSR1, signal.SIGUSR2} <= blocked
    assert not {signal.SIGUSR1, signal.SIGUSR2} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
