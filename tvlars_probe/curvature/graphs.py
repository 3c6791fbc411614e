"""What autograd's graphs hold: bytes that they keep alive, and functions that torch didn't write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

if TYPE_CHECKING:
    from collections.abc import Iterable


def custom_functions(loss: Tensor) -> tuple[str, ...]:
    """The names of the `torch.autograd.Function`s in the graph of ``loss``, each once."""
    names: dict[str, None] = {}
    seen: set[object] = set()
    ahead: list[Any] = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += [following for following, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
    return tuple(names)


class SavedBytes:
    """Counts the memory that a graph built inside keeps alive; storages that several nodes share count once.

    Args:
        beside: tensors whose memory doesn't count.
    """

    def __init__(self, beside: Iterable[Tensor] = ()) -> None:
        self._beside = {tensor.untyped_storage().data_ptr() for tensor in beside}
        # By address, which is a storage's own while the graph keeps it alive.
        self._storages: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, _unwritten)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

    def _count(self, tensor: Tensor) -> tuple[Tensor, int]:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._beside:
            self._storages[storage.data_ptr()] = storage.nbytes()
        # Detached: the tensor itself would hold the graph that holds it, and neither would ever be freed.
        return tensor.detach(), tensor._version

    @property
    def bytes(self) -> int:
        """Number of bytes so far."""
        return sum(self._storages.values())


def _unwritten(saved: tuple[Tensor, int]) -> Tensor:
    """A saved tensor that nothing has been written to: torch itself tests this only where there are no hooks."""
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError("a tensor that the backward pass needs has been modified by an inplace operation")
    return tensor
