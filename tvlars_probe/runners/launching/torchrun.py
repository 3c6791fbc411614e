"""What the environment that torchrun sets says of this process. Needs no torch."""

from __future__ import annotations

import os


def launched_by_torchrun() -> bool:
    """Whether this process was started by torchrun (or anything that sets its environment)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


def seat() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun says."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def speaks() -> bool:
    """Whether this process tells the user what came of it: of torchrun's ranks only the first does."""
    return not launched_by_torchrun() or seat()[0] == 0


def restarts() -> int:
    """How often this node's agent started its ranks again for a failure of theirs. Other nodes' agents count others."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def has_lasting_store() -> bool:
    """Whether an agent keeps the store in which the ranks meet, so that it outlives them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
