"""Work that each rank does by itself, and whose errors all ranks share."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.collectives import Ranks

T = TypeVar("T")


def on_all_ranks(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do work at whose end no rank waits for another; where it raises on one of them, all raise."""
    if ranks.world_size == 1:
        return work()
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    # The first rank of the worst severity: what it says is said on all ranks that have nothing as bad of their own.
    severity, size = 0 if error is None else 1 + isinstance(error, UserError), ranks.world_size
    worst, rank = divmod(ranks.agree([severity * size + size - 1 - ranks.rank])[0], size)
    if worst:
        source = size - 1 - rank
        text = ranks.from_rank(source, str(error))
        kind: type[Exception] = UserError if worst > 1 else RuntimeError
        if error is not None and severity == worst:
            raise error
        raise kind(f"rank {source} can't compute the loss of its part of the sample: {text}") from error
    return result
