"""Starting a run's processes: in this one, by torch's elastic launcher, or as one of torchrun's."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.errors import InterruptedRunError, RunFailedError
from tvlars_probe.runners.ranks import Placement, join, launched_by_torchrun, leave

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvlars_probe.runners.config import PlaceConfig
    from tvlars_probe.runners.ranks import Ranks


def launch(work: Callable[..., Any], job: Any, placement: Placement, config: PlaceConfig) -> None:
    """Run ``work(ranks, job)`` on every rank and wait for them.

    Args:
        work: a function of a module, so that other processes can import it.
        job: what to do; it must survive pickling.
        placement: this machine's ranks.
        config: threads and port.

    Raises:
        RunFailedError: a rank ended with an error; the others have been ended.
    """
    if placement.nproc == 1 or launched_by_torchrun():
        _work(work, job, placement, config)
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=placement.nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{config.port}",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    try:
        elastic_launch(settings, _work)(work, job, placement, config)
    except SignalException as error:
        raise InterruptedRunError(int(error.sigval)) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RunFailedError(f"rank {rank} failed: {_reason(failure)}") from None


def _work(work: Callable[..., Any], job: Any, placement: Placement, config: PlaceConfig) -> None:
    torch.set_num_threads(config.threads or _threads(placement))
    ranks: Ranks = join(placement)
    try:
        work(ranks, job)
    finally:
        leave()


def _threads(placement: Placement) -> int:
    """torch's own number for one process, an equal share of the cores for several."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched_by_torchrun() else placement.nproc
    return torch.get_num_threads() if processes == 1 else max(1, (os.cpu_count() or 1) // processes)


def _reason(failure: Any) -> str:
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", message)
    lines = [line for line in str(message).strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {failure.exitcode}"
