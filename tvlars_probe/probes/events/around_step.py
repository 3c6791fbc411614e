"""Calls before and after an optimizer's update, for steps with and without a closure, wrapped and compiled ones.

Torch calls hooks around the step of an optimizer that it has made. A wrapper whose constructor never called
`Optimizer.__init__` has none: there the object's ``step`` is replaced. Of any wrapper the hooks of the optimizer inside
it tell whether, and when, an update is made: it may accumulate gradients, or move the weights and put them back (SAM).
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol

from torch.optim import Optimizer

from tvlars_probe.errors import UserError
from tvlars_probe.optimizers.given import has_hooks, inner_of, members_of
from tvlars_probe.reductions import is_capturing
from tvlars_probe.uncompiled import uncompiled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType


class Handle(Protocol):
    """What ends a watch."""

    def remove(self) -> None:
        """End it."""
        ...


def around_step(
    optimizer: Optimizer,
    before: Callable[[], None],
    after: Callable[[], None],
    recorded: Sequence[Optimizer] = (),
) -> list[Handle]:
    """Call ``before`` once a step's gradients are there, before its update, and ``after`` after the update.

    A step with a closure computes its gradients itself: there ``before`` is called after the closure's first call.
    Where a step calls the step of its parent class, torch may call the hooks for both; only the outer step counts.
    Where a wrapper's step makes no step of the optimizer inside it, ``after`` isn't called.

    Args:
        optimizer: the optimizer.
        before: is called before its update.
        after: is called after it.
        recorded: all optimizers that are watched: one of them that this one holds has other parameters, and isn't
            wrapped by it.

    Returns:
        the handles that end it.

    Raises:
        UserError: the optimizer's step can't be watched; from a step: it is being captured in a CUDA graph.
    """
    inner = inner_of(optimizer)
    inner = None if any(inner is one for one in recorded) else inner
    if not has_hooks(optimizer):
        return _around_replaced_step(optimizer, inner, before, after)
    if inner is not None and members_of(inner) == members_of(optimizer):
        return _around_wrapping_step(optimizer, inner, before, after)
    return _around_hooked_step(optimizer, lambda args, kwargs: _observed(args, kwargs, before), after)


def _around_hooked_step(
    optimizer: Optimizer, observed: Callable[[tuple[Any, ...], dict[str, Any]], Any], after: Callable[[], None]
) -> list[Handle]:
    """`around_step` by torch's hooks; ``observed`` takes a step's arguments and returns those that it is to have."""
    # The frame of torch's wrapper around the outer step. After a step that raised, torch calls no post-hook and the
    # frame stays here: so an outer step counts only as long as its frame is running.
    outer: FrameType | None = None

    @uncompiled
    def pre_hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal outer
        if is_capturing():
            raise UserError(
                "a recorded step is being captured in a CUDA graph, whose replays call no hooks and would leave no "
                "rows: capture it outside of record(), or record uncaptured steps"
            )
        frame = _frame_of_step()
        if outer is not None and _is_running(outer, frame):
            return None
        outer = frame
        # args[0] is the optimizer itself.
        arguments, kwargs_seen = observed(args[1:], kwargs)
        # What a pre-hook returns takes the place of the step's arguments.
        return (args[0], *arguments), kwargs_seen

    @uncompiled
    def post_hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal outer
        if outer is _frame_of_step():
            outer = None
            after()

    return [optimizer.register_step_pre_hook(pre_hook), optimizer.register_step_post_hook(post_hook)]


def _frame_of_step() -> FrameType:
    """The frame of torch's wrapper that calls a hook. Between the two lie frames of the compiler, which skips hooks."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename != _TORCHS_FILE and frame.f_back is not None:
        frame = frame.f_back
    # A compiled function that was broken off goes on in a function of its own, called from where it was broken off.
    while frame.f_code.co_name.startswith("torch_dynamo_resume_in") and frame.f_back is not None:
        frame = frame.f_back
    return frame


_TORCHS_FILE = Optimizer.register_step_pre_hook.__code__.co_filename


def _is_running(frame: FrameType, below: FrameType) -> bool:
    """Whether ``frame`` has called, however indirectly, what runs in ``below``."""
    caller = below.f_back
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame


def _observed(
    args: tuple[Any, ...], kwargs: dict[str, Any], before: Callable[[], None]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Call ``before``, or return a step's arguments with a closure that will."""
    closure = kwargs.get("closure", args[0] if args else None)
    if closure is None:
        before()
        return args, kwargs
    observed = _after_first_call(closure, before)
    if "closure" in kwargs:
        return args, {**kwargs, "closure": observed}
    return (observed, *args[1:]), kwargs


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


def _around_wrapping_step(
    optimizer: Optimizer, inner: Optimizer, before: Callable[[], None], after: Callable[[], None]
) -> list[Handle]:
    """`around_step` of a wrapper that has hooks. The optimizer inside it tells whether there is an update at all.

    It also tells when the gradients of a closure are there, and the weights back where they were: SAM calls the closure
    at others. Without a closure both are there when the wrapper's own step begins, which may then change the gradient.
    """
    outer: FrameType | None = None  # that of a step that raised stays here, and no longer runs
    is_seen = is_update = False

    def is_running() -> bool:
        return outer is not None and _is_running(outer, sys._getframe())

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal outer, is_seen, is_update
        outer, is_update = _frame_of_step(), False
        is_seen = kwargs.get("closure", args[0] if args else None) is None
        if is_seen:
            before()
        return args, kwargs

    def before_inner() -> None:
        nonlocal is_seen, is_update
        # Of several steps inside one, the first has the weights before the update.
        if not (is_seen and is_running()):
            before()
        is_seen = is_update = True

    def after_inner() -> None:
        if not is_running():  # the inner step was called directly
            after()

    def end() -> None:
        nonlocal outer
        outer = None
        if is_update:
            after()

    return [*around_step(inner, before_inner, after_inner), *_around_hooked_step(optimizer, begin, end)]


class _ReplacedStep:
    """The ``step`` of one object, replaced until `remove`. Where another has been put over it, it does nothing more."""

    def __init__(self, optimizer: Optimizer, step: Callable[..., Any]) -> None:
        self._optimizer, self._step = optimizer, step
        self._own = vars(optimizer).get("step")
        self.is_removed = False
        try:
            optimizer.step = step  # type: ignore[method-assign]
        except AttributeError:
            name = type(optimizer).__name__
            raise UserError(f"the step of {name} can't be watched: record the optimizer inside it") from None

    def remove(self) -> None:
        """Put back what was there."""
        self.is_removed = True
        if vars(self._optimizer).get("step") is not self._step:
            return
        if self._own is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own  # type: ignore[method-assign]


def _around_replaced_step(
    optimizer: Optimizer, inner: Optimizer | None, before: Callable[[], None], after: Callable[[], None]
) -> list[Handle]:
    """`around_step` of an optimizer that has no hooks.

    An optimizer inside it tells when the gradients are those of the loss (they may be scaled before) and whether there
    is an update at all (gradients may be accumulated). After it the wrapper may move the weights again.
    """
    original = optimizer.step
    is_running = is_seen = False

    def before_inner() -> None:
        nonlocal is_seen
        # Of several steps inside one, the first has the weights before the update.
        if not (is_running and is_seen):
            is_seen = True
            before()

    def after_inner() -> None:
        nonlocal is_seen
        if not is_running:  # the inner step was called directly
            is_seen = False
            after()

    @uncompiled
    @wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_running, is_seen
        if replaced.is_removed or is_running:
            return original(*args, **kwargs)
        is_running, is_seen = True, False
        try:
            if inner is None:
                args, kwargs = _observed(args, kwargs, before)
            result = original(*args, **kwargs)
        finally:
            is_running = False
        if is_seen or inner is None:
            after()
        return result

    handles = [] if inner is None else around_step(inner, before_inner, after_inner)
    try:
        replaced = _ReplacedStep(optimizer, step)
    except UserError:
        for handle in handles:
            handle.remove()
        raise
    return [*handles, replaced]
