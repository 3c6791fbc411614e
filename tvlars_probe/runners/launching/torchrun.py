"""What the environment that torchrun sets says of this process. Needs no torch."""

from __future__ import annotations

import os


def launched_by_torchrun() -> bool:
    """Whether this process was started by torchrun (or anything that sets its environment)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ


def seat() -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun says."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def restarted() -> bool:
    """Whether torchrun started this process again after a rank had failed."""
    return launched_by_torchrun() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")
