"""How updates go on when nothing changes but the optimizer's own state: its first steps, and whether it dies out.

The weights are put back after each step, and the gradient is the same, or one of few: what changes is the optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvlars_probe.diagnosis.results import Observed
from tvlars_probe.diagnosis.subject import drawn, norms, told, unmoved, updates, weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.diagnosis.subject import TriedOptimizer

DEAD = 1e-6
"""Share of the tensor's largest update below which an update is none."""

_SETTLED = 100
"""Steps after which momentum of 0.95 has forgotten its start to a hundredth."""

_LEVER = 0.01
"""Size of the second gradient whose first update is compared; smaller than 1, since some clamp large norms."""


def first_step(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Does the first update follow the rule of the later ones?

    Momentum m ← β·m + u that begins at the raw gradient instead of at zero, or at u, shows so under a gradient that
    never changes: the first update is as large as the gradient makes it, larger than any later one, and the excess
    fades by β in each step. Momentum that begins at zero or at u only grows towards u/(1 − β). The sum of Adagrad and
    the average of RMSprop make first updates larger, too, but of a size that doesn't depend on the gradient's.
    """
    large, small = (_under_a_constant(subject, dtype, scale) for scale in (1.0, _LEVER))
    if large is None or small is None:
        return Observed("not applicable", "it keeps no tensor from step to step")
    for k in range(large.shape[1]):
        course = large[:, k] / large[-5:, k].mean()
        responds = (small[0, k] / large[0, k]).item() < 10 * _LEVER
        fades = bool((course[:3] > 1.01 * course[1:4]).all())
        if responds and fades and course[0] > 1.5:
            return Observed(
                "wrong",
                f"the first update is {course[0]:.4g} times as large as the settled one and fades from step to step "
                f"({', '.join(f'{one:.4g}' for one in course[1:4])} times): momentum begins at the raw gradient",
            )
    return Observed("right", "under a constant gradient, first updates don't stand out against later ones")


def _under_a_constant(subject: TriedOptimizer, dtype: torch.dtype, scale: float) -> Tensor | None:
    """‖Δw‖ under a gradient that never changes, (steps, tensors); None where the optimizer keeps no tensors."""
    params, gradients = weights(subject.shapes, dtype), drawn(subject.shapes, dtype, cycle=1)
    optimizer = subject.made([params])
    made = norms(updates(optimizer, params, lambda step: [scale * g for g in gradients(step)], _SETTLED, holds=True))
    kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return made if any(v.numel() > 1 for v in kept) else None


def factor_alive(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Do updates stay finite, and above a millionth of the tensor's largest one, as the steps go on?"""
    subject.must_move()
    shapes = subject.shapes[::2]
    params, gradients = weights(shapes, dtype), drawn(shapes, dtype)
    optimizer = subject.made([params])
    start, sizes = [p.detach().clone() for p in params], list[Tensor]()
    for step in range(subject.horizon):
        try:
            sizes.append(_size_of_update(optimizer, params, gradients(step), start))
        except Exception as error:  # whatever a stranger's step raises
            return Observed("wrong", f"step {step} raises {told(error)}")
    table = torch.stack(sizes)
    finite = table.isfinite().all(dim=1)
    if not finite.all():
        return Observed("wrong", f"the update of step {int(finite.int().argmin())} isn't finite")
    if not table.any(dim=0).all():
        return unmoved(dtype, "a tensor is never moved")
    low = table < DEAD * table.max(dim=0).values
    # Dead is what stays so to the end: a step may be zero by chance, as Rprop's is where signs turn.
    lasting = low.flip(0).cumprod(0).sum(0)
    if int(lasting.max()) >= 10:
        at = subject.horizon - int(lasting.max())
        left = (table[-1] / table.max(dim=0).values)[lasting.argmax()].item()
        return Observed(
            "wrong",
            f"from step {at} on a tensor's update is below {DEAD:g} of its largest ({left:.3g} of it in the end)",
        )
    return Observed("right", f"finite and alive for {subject.horizon} steps")


def _size_of_update(
    optimizer: Optimizer, params: list[nn.Parameter], grads: Sequence[Tensor], start: list[Tensor]
) -> Tensor:
    """Make a step, put the weights back to ``start``, and return each tensor's ‖Δw‖, in few kernels."""
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.step()
    with torch.no_grad():
        weights_now = [p.detach() for p in params]
        torch._foreach_sub_(weights_now, start)  # what stays is the update
        sizes = torch.stack(torch._foreach_norm(weights_now))
        torch._foreach_copy_(weights_now, start)
    return sizes


_FULL_RATE = 10.0
"""Times the update of an equal matrix from which a tensor counts as left out of what holds the others back."""


def excluded_held(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Are a vector, and a matrix without weight decay, held back as a matrix of equal norms is, and moved at all?"""
    if subject.left_out is not None:
        return Observed("not applicable", subject.left_out)
    subject.must_move()
    shapes = ((8, 8), (64,))
    params, (g,) = weights(shapes, dtype), drawn(((8, 8),), dtype, cycle=1)(0)
    with torch.no_grad():
        params[1].copy_(params[0].flatten())
    sizes = norms(updates(subject.made([params]), params, lambda _: [g, g.flatten()], _SETTLED, holds=True))[-1]
    times = (sizes[1] / sizes[0]).item()
    if times > _FULL_RATE:
        return Observed("wrong", f"a vector's update is {times:.4g} times that of a matrix with equal norms")
    if not sizes[1]:
        return unmoved(dtype, "a vector isn't moved")
    if "weight_decay" in subject.defaults():
        pair = [torch.nn.Parameter(params[0].detach().clone()) for _ in range(2)]
        optimizer = subject.made([pair[:1], pair[1:]], {"weight_decay": 1e-4}, {"weight_decay": 0.0})
        sizes = norms(updates(optimizer, pair, lambda _: [g, g], _SETTLED, holds=True))[-1]
        times = (sizes[1] / sizes[0]).item()
        if times > _FULL_RATE:
            return Observed(
                "wrong", f"without weight decay a matrix's update is {times:.4g} times that with a decay of 0.0001"
            )
        if not sizes[1]:
            return unmoved(dtype, "a matrix without weight decay isn't moved")
    return Observed("right", "vectors and tensors without decay move, and not ten times as far as matrices do")
