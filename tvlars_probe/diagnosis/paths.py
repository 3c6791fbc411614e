"""The same update by other ways: multi-tensor and fused kernels, and tensors that are spread over ranks."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tvlars_probe.collectives import is_distributed, world_size
from tvlars_probe.diagnosis.fitting import refuses
from tvlars_probe.diagnosis.results import Observed
from tvlars_probe.diagnosis.subject import distance, drawn, refuse_random, told, updates, weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.diagnosis.subject import TriedOptimizer

STEPS = 8

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference that rounding may make, relative to the tensor's largest element of the update.

In float64, too, some optimizers keep numbers in single precision by one way and not by the other (torch's ASGD)."""

_KERNELS = ("foreach", "fused")


def kernels_agree(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Do ``foreach`` and ``fused`` make the loop's updates, with momentum, decay and a rate for each group?"""
    defaults = subject.defaults()
    there = [name for name in _KERNELS if name in defaults]
    if not there:
        return Observed("not applicable", "it has no foreach and no fused")
    further = {
        name: value for name, value in (("momentum", 0.9), ("weight_decay", 0.1))
        if isinstance(defaults.get(name), int | float)
    }  # fmt: skip
    off: dict[str, Any] = dict.fromkeys(there, False)
    loop = _run(subject, dtype, {**further, **off})
    refused, compared = [], []
    for name in there:
        try:
            other = _run(subject, dtype, {**further, **off, name: True})
        except Exception as error:  # whatever a stranger's kernel raises
            if not refuses(error):
                return Observed("wrong", f"{name}=True raises {told(error)}")
            refused.append(f"{name}: {told(error)}")
            continue
        apart = distance(loop, other)
        if apart > _ROUNDING[dtype]:
            refuse_random(subject, dtype, seed=subject.seed + 1)
            return Observed("wrong", f"{name}=True makes updates that differ by {apart:.3g} from those of the loop")
        compared.append(f"{name} differs by {apart:.1g}")
    if not compared:
        return Observed("not applicable", "; ".join(refused))
    return Observed("right", f"as the loop, up to rounding: {', '.join(compared)}")


def _run(subject: TriedOptimizer, dtype: torch.dtype, settings: dict[str, Any]) -> list[list[torch.Tensor]]:
    params = weights(subject.shapes, dtype)
    half = len(params) // 2
    lr = subject.defaults().get("lr")
    second = {**settings, "lr": 0.5 * lr} if isinstance(lr, int | float) else settings
    optimizer = subject.made([params[:half], params[half:]], settings, second)
    return updates(optimizer, params, drawn(subject.shapes, dtype), STEPS)


def dtensors_agree(subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    """Are DTensors on a mesh of one rank updated as plain tensors are?"""
    if not dist.is_available() or not dist.is_gloo_available():
        return Observed("not applicable", "this torch has no process groups")
    if is_distributed() and world_size() > 1:
        return Observed("not applicable", "this process is one of several ranks: call the doctor in a process alone")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    # A DTensor of no dimension has nothing to shard.
    shapes = tuple(shape for shape in subject.shapes if shape)
    params, gradients = weights(shapes, dtype), drawn(shapes, dtype)
    plain = updates(subject.made([params]), params, gradients, STEPS)
    with _alone():
        mesh = init_device_mesh("cpu", (1,))

        def spread(tensor: torch.Tensor) -> Any:
            return distribute_tensor(tensor.detach(), mesh, [Shard(0)])

        sharded = [torch.nn.Parameter(spread(p)) for p in weights(shapes, dtype)]
        try:
            optimizer = subject.made([sharded])
            made = updates(optimizer, sharded, lambda step: [spread(g) for g in gradients(step)], STEPS)
        except Exception as error:  # torch's own kernels lack some operations on DTensors
            return Observed("not applicable", f"it can't be tried on DTensors: {told(error)}")
        whole = [[u.full_tensor() for u in step] for step in made]  # type: ignore[attr-defined]
    apart = distance(plain, whole)
    if apart > _ROUNDING[dtype]:
        refuse_random(subject, dtype, seed=subject.seed + 1)
        return Observed("wrong", f"updates of DTensors differ by {apart:.3g} from those of plain tensors")
    return Observed("right", f"as plain tensors, up to {apart:.1g}")


_DROPPING = 0.1
"""Seconds in which gloo's threads drop the tensors of the last collective; see `runners.launching.process_group`."""


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A process group of this process alone, where there is none."""
    if is_distributed():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        time.sleep(_DROPPING)
        dist.destroy_process_group()
