"""Starting a run's processes: in this one, by torch's elastic launcher, or as one of torchrun's."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.errors import InterruptedRunError, RunDirectoryError, RunFailedError
from tvlars_probe.runners.launching.process_group import join, leave
from tvlars_probe.runners.launching.stop_signals import IS_CHILD, SIGNALS
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.queues import SimpleQueue

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.runners.config import PlaceConfig
    from tvlars_probe.runners.launching.places import Placement

_POLL_SECONDS = 0.1

_FAREWELL_SECONDS = 1.0
"""How long a rank that fails stays, so that the launcher sees first who died before it."""

_FAILURE_CHARACTERS = 1000
"""Of an error's text, what a rank tells the launcher: far below what a pipe takes at once."""

ORPHAN_SECONDS = 300.0
"""How long ranks whose launcher is gone may take to end in order, checkpoint included, before they are ended."""


def launch(work: Callable[..., Any], job: Any, placement: Placement, config: PlaceConfig) -> int | None:
    """Run ``work(ranks, job)`` on every rank and wait for them.

    Args:
        work: a function of a module, so that other processes can import it. What it returns is taken for the signal
            that ended it early.
        job: what to do; it must survive pickling.
        placement: this machine's ranks.
        config: threads and port.

    Returns:
        the signal that ended the work early, if one did; the ranks ended in order.

    Raises:
        RunFailedError: a rank ended with an error; the others have been ended.
        InterruptedRunError: a signal ended the ranks before they could do so in order.
    """
    if placement.nproc == 1 or launched_by_torchrun():
        return _number(_work(work, job, placement, config))
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
        monitor_interval=_POLL_SECONDS,
        start_method="spawn",
    )
    failures: SimpleQueue[tuple[int, str]] = multiprocessing.get_context("spawn").SimpleQueue()
    with _forwarding(placement.nproc) as (signals, pass_on):
        try:
            elastic = elastic_launch(settings, _attempt)
            returned = _in_thread(lambda: elastic(failures, work, job, placement, config), meanwhile=pass_on)
        except ChildFailedError as error:
            if signals:
                raise InterruptedRunError(signals[0]) from None
            raise RunFailedError(_first_failure(failures, error)) from None
    refused = next((value for value in returned.values() if isinstance(value, RunDirectoryError)), None)
    if refused is not None:
        raise refused
    number = next((number for value in returned.values() if (number := _number(value))), None)
    return signals[0] if number and signals else number


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _in_thread(work: Callable[[], Any], meanwhile: Callable[[], None]) -> Any:
    """Do the work in another thread: the elastic agent, there, leaves signals to us."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run)
    with _silenced("torch.distributed.elastic", "torch.multiprocessing"):
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            meanwhile()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


@contextlib.contextmanager
def _silenced(*packages: str) -> Iterator[None]:
    """Without the log of these packages: that signals are left to us, and tracebacks of what we say in a line."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(packages)]
    loggers = [logger for name in names if not (logger := logging.getLogger(name)).disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


@contextlib.contextmanager
def _forwarding(nproc: int) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Hand the first signal on to the ranks, which end in order; at a second one they are killed.

    Yields:
        the signals received, and a function that hands the last one on to ranks that have been started since.
    """
    received: list[int] = []
    told: dict[int, set[int | None]] = {1: set(), 2: set()}  # at the first signal, and at a later one
    if threading.current_thread() is not threading.main_thread():
        yield received, lambda: None
        return

    def pass_on() -> None:
        if not received:
            return
        this = told[min(len(received), 2)]
        if len(this) < nproc:  # asking for the children takes their exit codes from whom waits for them
            for child in multiprocessing.active_children():
                if child.pid not in this:
                    this.add(child.pid)
                    child.terminate() if len(received) == 1 else child.kill()

    def on_signal(number: int, _: Any) -> None:
        received.append(number)
        pass_on()

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    os.environ[IS_CHILD] = "1"  # inherited
    try:
        yield received, pass_on
    finally:
        del os.environ[IS_CHILD]
        for number, handler in before.items():
            signal.signal(number, handler)


def _attempt(
    failures: SimpleQueue[tuple[int, str]],
    work: Callable[..., Any],
    job: Any,
    placement: Placement,
    config: PlaceConfig,
) -> Any:
    """`_work`; what a rank can't do as asked, which all ranks find alike, is handed back."""
    done = threading.Event()
    threading.Thread(target=_end_with_the_launcher, args=(done,), daemon=True).start()
    try:
        return _work(work, job, placement, config, failures)
    except RunDirectoryError as error:
        return error
    finally:
        done.set()


def _end_with_the_launcher(done: threading.Event) -> None:
    """Wait for the launcher's death, then end this rank: the elastic agent that was killed can't."""
    launcher = multiprocessing.parent_process()
    if launcher is None:
        return
    multiprocessing.connection.wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    done.wait(ORPHAN_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _work(
    work: Callable[..., Any],
    job: Any,
    placement: Placement,
    config: PlaceConfig,
    failures: SimpleQueue[tuple[int, str]] | None = None,
) -> Any:
    torch.set_num_threads(config.threads or _threads(placement))
    ranks: Ranks = join(placement)
    try:
        return work(ranks, job)
    except RunDirectoryError:
        raise
    except Exception as error:
        if failures is not None:
            # Told while the others' connections still stand: theirs break when this rank leaves.
            failures.put((ranks.rank, f"{type(error).__name__}: {error}"[:_FAILURE_CHARACTERS]))
            time.sleep(_FAREWELL_SECONDS)
        raise
    finally:
        leave()


def _threads(placement: Placement) -> int:
    """torch's own number for one process, an equal share of the cores for several."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched_by_torchrun() else placement.nproc
    return torch.get_num_threads() if processes == 1 else max(1, (os.cpu_count() or 1) // processes)


def _first_failure(failures: SimpleQueue[tuple[int, str]], error: Any) -> str:
    """Which rank failed first, and how: of those that end within one poll torch names any."""
    rank, failure = error.get_first_failure()
    was_killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    if not was_killed and not failures.empty():
        rank, text = failures.get()
        return f"rank {rank} failed: {_last_line(text)}"
    return f"rank {rank} failed: {_reason(failure)}"


def _reason(failure: Any) -> str:
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", message)
    return _last_line(str(message)) or f"exit code {failure.exitcode}"


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
