"""Hooks around an optimizer's step, for steps with and without a closure, wrapped and compiled ones."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from tvlars_probe.probes.events.around_step import around_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from tvlars_probe.probes.events.around_step import Handle
    from tvlars_probe.probes.events.clock import StepClock
    from tvlars_probe.probes.loop import LoopEvents


class StepHooks:
    """Tells a recorder of its optimizers' steps.

    In a forked child, which may train on, nothing is told: the run is its parent's.

    Args:
        events: the recorder, which is told.
        clock: is told of the time spent before an update, which isn't the step's own.
    """

    def __init__(self, events: LoopEvents, clock: StepClock) -> None:
        self._events, self._clock, self._pid = events, clock, os.getpid()
        self._handles: list[Handle] = []

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Begin to tell of these optimizers' steps."""
        for index, optimizer in enumerate(optimizers):
            told = partial(self._before, index), partial(self._after, index)
            self._handles += around_step(optimizer, *told, recorded=optimizers)
        self._clock.start()

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, index: int) -> None:
        if os.getpid() != self._pid:
            return
        start = time.perf_counter()
        # torch calls hooks outside of the no_grad that an optimizer's step runs in.
        with torch.no_grad():
            self._events.before_update(index)
        self._clock.probed(time.perf_counter() - start)

    def _after(self, index: int) -> None:
        if os.getpid() != self._pid:
            return
        # Here the recorder tells the clock itself: the time of this hook belongs to the row that is about to end.
        with torch.no_grad():
            self._events.after_update(index, time.perf_counter())
