"""What every optimizer owes its caller: gradients left alone, state that is saved, groups that are followed.

Each function tries one thing in one precision. It may raise: `doctor` makes an answer of that.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.diagnosis.results import Observed
from tvlars_probe.diagnosis.subject import distance, drawn, norms, refuse_random, same, told, unmoved, updates, weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.diagnosis.subject import TriedOptimizer

STEPS = 5
"""Steps after which what an optimizer does is compared."""

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of updates that rounding may make."""

_SINGLE = {torch.float64: 2.0**-20, torch.float32: 0.0}
"""Relative difference that rounding makes where a number is kept in single precision: loaded, it has the weights'."""


_MOVING = 20
"""Steps in which each tensor must move, and by which weights go down."""

_UPWARD = 0.3
"""Cosine of a tensor's way to its gradient from which it goes up. Signs and orthogonal matrices have about 0.8."""


def steps_made(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Do plain steps raise nothing, and move tensors of all shapes?"""
    if subject.fault is not None:
        return Observed("wrong", subject.fault)
    params = weights(subject.shapes, dtype)
    optimizer = subject.made([params])
    try:
        made = updates(optimizer, params, drawn(subject.shapes, dtype), _MOVING)
    except Exception as error:  # whatever a stranger's step raises
        return Observed("wrong", f"a step raises {told(error)}")
    subject.must_move()
    still = [str(shape) for shape, way in zip(subject.shapes, norms(made).sum(dim=0), strict=True) if way == 0]
    if not still:
        return Observed("right", f"{_MOVING} steps, and each tensor is moved")
    return unmoved(dtype, f"{_MOVING} steps don't move what has shape {' or '.join(still)}")


def goes_down(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Do weights go against a gradient that never changes? It has right angles to them, so that decay isn't seen."""
    subject.must_move()
    shapes = tuple(shape for shape in subject.shapes if shape)
    params, start = weights(shapes, dtype), weights(shapes, dtype)
    slopes = [
        g - (g * w).sum() / w.square().sum() * w.detach()
        for g, w in zip(drawn(shapes, dtype, cycle=1)(0), start, strict=True)
    ]
    optimizer = subject.made([params])
    updates(optimizer, params, lambda _: slopes, _MOVING)
    # Some of torch's optimizers go up where they are asked to.
    way = -1 if subject.defaults().get("maximize") is True else 1
    for shape, p, w, g in zip(shapes, params, start, slopes, strict=True):
        moved = p.detach() - w.detach()
        along = way * torch.nn.functional.cosine_similarity(moved.flatten(), g.flatten(), dim=0).item()
        if along > _UPWARD:
            return Observed("wrong", f"a tensor of shape {shape} goes up: its way has a cosine of {along:.2g} to g")
    return Observed("right", "no tensor goes the gradient's way")


def gradient_kept(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Is each gradient after a step what it was before?"""
    params, gradients = weights(subject.shapes, dtype), drawn(subject.shapes, dtype)
    optimizer = subject.made([params])
    for step in range(STEPS):
        updates(optimizer, params, gradients, 1, first=step)
        for p, g in zip(params, gradients(step), strict=True):
            if p.grad is None:
                return Observed("wrong", f"step {step} took the gradient away (None)")
            if not torch.equal(p.grad, g):
                change = ((p.grad - g).norm() / g.norm()).item()
                return Observed("wrong", f"step {step} changed a gradient by {change:.3g} of its norm")
    return Observed("right", f"unchanged in {STEPS} steps")


def state_saved(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Does a new optimizer that loads the state go on as the old one does, bit for bit?"""
    gradients = drawn(subject.shapes, dtype)
    runs = []
    for _ in range(2):
        params = weights(subject.shapes, dtype)
        optimizer = subject.made([params])
        updates(optimizer, params, gradients, STEPS)
        saved, random = _through_a_file(optimizer.state_dict()), torch.get_rng_state()
        values = [p.detach().clone() for p in params]
        runs.append(updates(optimizer, params, gradients, STEPS, first=STEPS))
    if not same(*runs):
        return Observed("can't tell", "two runs from one start differ: something random, or kept outside the optimizer")
    params = [torch.nn.Parameter(value) for value in values]
    other = subject.made([params])
    other.load_state_dict(saved)
    torch.set_rng_state(random)
    going_on = updates(other, params, gradients, STEPS, first=STEPS)
    if same(runs[0], going_on):
        return Observed("right", f"the same bits in {STEPS} steps after loading")
    if distance(runs[0], going_on) <= _SINGLE[dtype]:
        return Observed("right", "the same up to the rounding of single precision, in which it keeps a number")
    first = next(k for k in range(STEPS) if not same(runs[0][k : k + 1], going_on[k : k + 1]))
    off = distance(runs[0][first : first + 1], going_on[first : first + 1])
    return Observed("wrong", f"step {first + 1} after loading differs by {off:.3g} of its update")


def _through_a_file(state: dict[str, Any]) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    # The state was made in this process a moment ago, and a stranger's may hold more than tensors.
    return torch.load(stream, weights_only=False)


def rate_of_group(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Does each group follow its own ``lr``, whenever that is set?"""
    return _setting_of_group(subject, dtype, "lr", lambda lr: (2 * lr, 1e-4 * lr))


def decay_of_group(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Does each group follow its own ``weight_decay``, whenever that is set?"""
    return _setting_of_group(subject, dtype, "weight_decay", lambda decay: (2 * decay + 0.1,))


def _setting_of_group(
    subject: TriedOptimizer, dtype: torch.dtype, name: str, others: Callable[[float], tuple[float, ...]]
) -> Observed:
    """Try other values of a group's setting. One must have an effect: LARC's clip hides rates above its ratio."""
    defaults = subject.defaults()
    value = defaults.get(name)
    if not isinstance(value, int | float):
        return Observed("not applicable", f"its groups have no {name}" if value is None else f"its {name} is {value}")
    subject.must_move()
    gradients = drawn(subject.shapes, dtype)

    def tried(given: Any, later: Any) -> tuple[Any, Any]:
        params = weights(subject.shapes, dtype)
        # Each group has a matrix: vectors may be left out of the decay.
        optimizer = subject.made([params[::2], params[1::2]], {}, {name: given})
        optimizer.param_groups[1][name] = later
        made = updates(optimizer, params, gradients, STEPS)
        return [step[::2] for step in made], [step[1::2] for step in made]

    first, second = tried(value, value)
    for when, at_once in (("when it is made", True), ("by a schedule", False)):
        changed = [tried(other if at_once else value, other) for other in others(value)]
        if all(same(second, updates_of_second) for _, updates_of_second in changed):
            return Observed("wrong", f"{name} of a group, set {when}, has no effect on its updates")
        if not all(same(first, updates_of_first) for updates_of_first, _ in changed):
            refuse_random(subject, dtype, seed=subject.seed)
            return Observed("wrong", f"{name} of one group, set {when}, changes the updates of another group")
    return Observed("right", "each group follows its own, given when it is made or set later, and no other's")


def zero_norms(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Are updates finite where a tensor, its gradient, or both are zero?"""
    gradients = drawn(subject.shapes, dtype)
    for label, w, g in (("weights", 0.0, 1.0), ("gradients", 1.0, 0.0), ("weights and gradients", 0.0, 0.0)):
        params = weights(subject.shapes, dtype)
        with torch.no_grad():
            for p in params:
                p.mul_(w)
        optimizer = subject.made([params])
        try:
            made = updates(optimizer, params, lambda step, g=g: [g * one for one in gradients(step)], 3)  # type: ignore[misc]
        except Exception as error:  # whatever a stranger's step raises
            return Observed("wrong", f"a step with zero {label} raises {told(error)}")
        for step, of_step in enumerate(made):
            if not all(u.isfinite().all() for u in of_step):
                return Observed("wrong", f"zero {label} give an update that isn't finite in step {step}")
    return Observed("right", "finite with zero weights, zero gradients, and both")


def none_gradients(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Is a tensor without gradient left alone, and are the others updated as without it?"""
    gradients, shapes = drawn(subject.shapes, dtype), subject.shapes
    params, others = weights(shapes, dtype), weights(shapes, dtype)
    # One after the other, so that both draw the same random numbers.
    for given, stepped in ((params, params), (others, [p for k, p in enumerate(others) if k != 1])):
        optimizer = subject.made([stepped])
        try:
            optimizer.step()  # some count updates
            for step in range(STEPS):
                for k, (p, g) in enumerate(zip(given, gradients(step), strict=True)):
                    p.grad = None if k == 1 else g.clone()
                optimizer.step()
        except Exception as error:  # whatever a stranger's step raises
            return Observed("wrong", f"a step with a gradient that is None raises {told(error)}")
    start = weights(shapes, dtype)
    if not torch.equal(params[1], start[1]):
        return Observed("wrong", "a tensor whose gradient is None is changed")
    apart = distance(
        [[p - s for p, s in zip(params, start, strict=True)]], [[q - s for q, s in zip(others, start, strict=True)]]
    )
    if apart > _ROUNDING[dtype]:
        refuse_random(subject, dtype, seed=subject.seed + 1)
        return Observed("wrong", f"the other tensors' updates differ by {apart:.3g} from those without that tensor")
    return Observed("right", "left alone; a step without any gradient changes nothing")
