"""Work that may raise on one rank alone, while others wait for it in a collective."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.collectives import Ranks

T = TypeVar("T")


def on_all_ranks(shards: Ranks, work: Callable[[], T]) -> T:
    """Do work at whose end no rank waits for another; where it raises on one of them, all raise."""
    if shards.world_size == 1:
        return work()
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    # The first rank of the worst severity: what it says is said on all ranks that have nothing as bad of their own.
    severity, size = 0 if error is None else 1 + isinstance(error, UserError), shards.world_size
    worst, rank = divmod(shards.agree([severity * size + size - 1 - shards.rank])[0], size)
    if worst:
        source = size - 1 - rank
        text = shards.from_rank(source, str(error))
        kind: type[Exception] = UserError if worst > 1 else RuntimeError
        if error is not None and severity == worst:
            raise error
        raise kind(f"rank {source} can't compute the loss of its part of the sample: {text}") from error
    return result
