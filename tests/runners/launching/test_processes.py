"""Signals that come while ranks are being started."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tvlars_probe.runners.launching import processes as launching

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
