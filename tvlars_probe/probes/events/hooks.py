"""Hooks around an optimizer's step, for steps with and without a closure."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

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
        self._handles: list[RemovableHandle] = []

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Begin to tell of these optimizers' steps."""
        for index, optimizer in enumerate(optimizers):
            self._handles += around_step(optimizer, partial(self._before, index), partial(self._after, index))
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


def around_step(
    optimizer: Optimizer, before: Callable[[], None], after: Callable[[], None]
) -> tuple[RemovableHandle, RemovableHandle]:
    """Call ``before`` once a step's gradients are there, before its update, and ``after`` after the update.

    A step with a closure computes its gradients itself: there ``before`` is called after the closure's first call.
    Where a step calls the step of its parent class, torch may call the hooks for both; only the outer step counts.

    Returns:
        the handles that remove the hooks.
    """
    # The frame of torch's wrapper around the outer step. After a step that raised, torch calls no post-hook and the
    # frame stays here: so an outer step counts only as long as its frame is running.
    outer: FrameType | None = None

    def pre_hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal outer
        frame = sys._getframe(1)
        if outer is not None and _is_running(outer, frame):
            return None
        outer = frame
        # args[0] is the optimizer itself.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            before()
            return None
        # What a pre-hook returns takes the place of the step's arguments.
        observed = _after_first_call(closure, before)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": observed}
        return (args[0], observed, *args[2:]), kwargs

    def post_hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal outer
        if outer is sys._getframe(1):
            outer = None
            after()

    return optimizer.register_step_pre_hook(pre_hook), optimizer.register_step_post_hook(post_hook)


def _is_running(frame: FrameType, below: FrameType) -> bool:
    """Whether ``frame`` has called, however indirectly, what runs in ``below``."""
    caller = below.f_back
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame


def _after_first_call(closure: Callable[[], Any], then: Callable[[], None]) -> Callable[[], Any]:
    """The closure, with ``then`` after its first call: a line search makes later calls, at other weights."""
    called = False

    def observed() -> Any:
        nonlocal called
        result = closure()
        if not called:
            called = True
            then()
        return result

    return observed
