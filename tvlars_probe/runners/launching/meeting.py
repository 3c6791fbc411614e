"""Where torchrun's ranks meet before they are a process group: in a store.

torchrun starts the ranks again when one has failed. What its agents tell the ranks of that differs between nodes: an
agent counts the failures of its own workers alone. So the ranks agree here on which attempt this is, and the store
remembers what earlier attempts began.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tvlars_probe.errors import RunFailedError
from tvlars_probe.runners.launching.torchrun import has_lasting_store, restarts, seat

TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for one another: rank 0 loads the data and plans the run before it joins the others."""

_POLL_SECONDS = 0.02

_THIS_PROCESS = uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What the ranks of one attempt have in common.

    Attributes:
        store: theirs alone, for their process group; None where one process meets nobody.
        memory: where `note` writes, if anywhere. Under torchrun's agents it outlives the ranks.
        restarted: whether torchrun has started the ranks again, where the memory can't tell, since it ended with them.
    """

    store: Store | None = None
    memory: Store | None = None
    restarted: bool = False

    def note(self, asked: str, path: Path) -> None:
        """Remember that the run at ``path`` is what was made of a request."""
        if self.memory is not None:
            self.memory.set(f"run/{asked}", f"{_THIS_PROCESS} {path}")

    def begun(self, asked: str) -> Path | None:
        """The run that an earlier attempt made of a request; None where it made none, or none is known."""
        if self.memory is None or not self.memory.check([f"run/{asked}"]):
            return None
        process, _, path = self.memory.get(f"run/{asked}").decode().partition(" ")
        return None if process == _THIS_PROCESS else Path(path)


def meet() -> Meeting:
    """Meet the other ranks. Every rank calls it.

    Raises:
        RunFailedError: a rank didn't come.
    """
    rank, world_size = seat()
    if world_size == 1 and not has_lasting_store():
        return Meeting(restarted=restarts() > 0)
    store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
    memory = PrefixStore("tvlars_probe", store)
    attempt, most = agree(memory, rank, world_size, restarts())
    return Meeting(store=PrefixStore(attempt, memory), memory=memory, restarted=most > 0 and not has_lasting_store())


def agree(store: Store, rank: int, world_size: int, count: int) -> tuple[str, int]:
    """Agree on a name for this attempt, which no other attempt has, and on the largest ``count`` of a rank.

    The store may hold what dead ranks wrote. Each rank leaves a word of its own making. Rank 0 answers every word that
    it finds, those of the dead as well, until each rank has confirmed its answer. Only ranks that live see the answer
    to their own word, and only they can confirm it.

    Args:
        store: holds anything, or nothing.
        rank: of this process.
        world_size: number of ranks.
        count: any number.

    Raises:
        RunFailedError: a rank didn't come.
    """
    if rank > 0:
        word = uuid.uuid4().hex
        store.set(f"word/{rank}", word)
        attempt = store.get(f"answer/{word}").decode()
        store.set(f"{attempt}/{rank}", str(count))
    else:
        attempt = uuid.uuid4().hex
        counts = _gather(store, attempt, world_size)
        store.set(f"{attempt}/most", str(max(count, *counts)))
    return attempt, int(store.get(f"{attempt}/most"))


def _gather(store: Store, attempt: str, world_size: int) -> list[int]:
    """Answer the others' words until each has confirmed ``attempt``; their counts, and 0."""
    missing, answered, deadline = set(range(1, world_size)), set[bytes](), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for rank in sorted(missing):
            if store.check([f"word/{rank}"]) and (word := store.get(f"word/{rank}")) not in answered:
                store.set(f"answer/{word.decode()}", attempt)
                answered.add(word)
        missing = {rank for rank in missing if not store.check([f"{attempt}/{rank}"])}
        if missing and time.monotonic() > deadline:
            late = ", ".join(map(str, sorted(missing)))
            raise RunFailedError(f"ranks that didn't come within {TIMEOUT.total_seconds() / 60:.0f} minutes: {late}")
        time.sleep(_POLL_SECONDS if missing else 0)
    return [0, *(int(store.get(f"{attempt}/{rank}")) for rank in range(1, world_size))]
