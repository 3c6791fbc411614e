"""Doing a run's work on every rank: in this process, alone or as one of torchrun's, or in processes started here."""

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
from tvlars_probe.runners.launching.stop_signals import IS_CHILD, JOB_SIGNALS, SIGNALS
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.queues import SimpleQueue

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.runners.configuration.place import PlaceConfig
    from tvlars_probe.runners.launching.places import Placement

_POLL_SECONDS = 0.1
"""Seconds between two looks at the ranks."""

_FAREWELL_SECONDS = 1.0
"""How long a failed rank stays alive, so that the launcher first notices a rank that died before it."""

_FAILURE_CHARACTERS = 1000
"""Most characters of an error's text that a rank sends: far fewer than a pipe takes without a reader."""

ORPHAN_SECONDS = 300.0
"""How long a rank whose launcher has died may take to end in order, with a checkpoint, before it ends itself."""


def launch(work: Callable[..., Any], job: Any, placement: Placement, config: PlaceConfig) -> int | None:
    """Run ``work(ranks, job)`` on every rank and wait for them.

    Args:
        work: a function at the top level of a module, so that other processes can import it. An integer that it
            returns is the number of the signal that ended it early.
        job: what to do; it is pickled.
        placement: the ranks of this machine.
        config: threads and port.

    Returns:
        the number of the signal that ended the work early and in order; None where there was none.

    Raises:
        RunDirectoryError: the run can't be made as asked, which all ranks find alike.
        RunFailedError: a rank that was started here ended with an error; the others have been ended.
        InterruptedRunError: a signal ended the ranks before they could do so in order.
    """
    if placement.nproc == 1 or launched_by_torchrun():
        return _number(_work(work, job, placement, config))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # "spawn": a forked child can't use CUDA once its parent has.
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
    # The ranks were sent SIGTERM whatever came: what this process received is the signal to report.
    number = next((number for value in returned.values() if (number := _number(value))), None)
    return signals[0] if number and signals else number


def _number(value: Any) -> int | None:
    """What a rank returned, if that is the number of a signal."""
    return value if isinstance(value, int) else None


def _in_thread(work: Callable[[], Any], meanwhile: Callable[[], None]) -> Any:
    """Do the work in another thread and call ``meanwhile`` every `_POLL_SECONDS`.

    The elastic agent sets handlers of its own for signals, but only in the main thread.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        # The ranks inherit it: they hear from this process that a scheduler wants the job to end.
        if JOB_SIGNALS:
            signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        try:
            outcome["value"] = work()
        except BaseException as error:  # whatever it is: the thread that waits raises it again
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
    """Switch off the log of these packages.

    They warn that no handlers for signals are set, and print tracebacks of failures that we report in one line.
    """
    # Each logger by itself: one that was disabled before stays so.
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
    """Hand the first signal on to the ranks, which end in order, and kill them at a second one, but not in a job.

    Yields:
        the signals received, and a function that hands the last one on to ranks that were started after it came.
    """
    received: list[int] = []
    told: dict[int, set[int | None]] = {1: set(), 2: set()}  # ranks told of the first signal, and of a later one
    if threading.current_thread() is not threading.main_thread():
        yield received, lambda: None
        return

    def pass_on() -> None:
        if not received:
            return
        this = told[min(len(received), 2)]
        # active_children() reaps children that have ended. The agent, waiting for one in its thread, could then find no
        # exit code and take it for failed; so this asks no longer than there are ranks to be told.
        if len(this) < nproc:
            for child in multiprocessing.active_children():
                if child.pid not in this:
                    this.add(child.pid)
                    child.terminate() if len(received) == 1 else child.kill()

    is_child = os.environ.get(IS_CHILD)

    def on_signal(number: int, _: Any) -> None:
        if not (received and is_child):
            received.append(number)
        pass_on()

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    os.environ[IS_CHILD] = "1"  # the ranks inherit it
    try:
        yield received, pass_on
    finally:
        if not is_child:
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
    """Do `_work` in a process that was started here.

    A `RunDirectoryError` is returned, not raised: all ranks find it alike, and the launcher would see a failed rank.
    """
    done = threading.Event()
    threading.Thread(target=_end_with_the_launcher, args=(done,), daemon=True).start()
    try:
        return _work(work, job, placement, config, failures)
    except RunDirectoryError as error:
        return error
    finally:
        done.set()


def _end_with_the_launcher(done: threading.Event) -> None:
    """End this rank when the launcher has died: the elastic agent, which would end it, died with the launcher."""
    launcher = multiprocessing.parent_process()
    if launcher is None:
        return
    multiprocessing.connection.wait([launcher.sentinel])
    # As if a user had sent it: the run ends in order, with a checkpoint. Nobody reads this rank's exit code any more.
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
    """Join the ranks, do the work, and leave them; a rank that fails says so in ``failures``, if that is given."""
    torch.set_num_threads(config.threads or _threads(placement))
    ranks: Ranks = join(placement)
    try:
        return work(ranks, job)
    except RunDirectoryError:
        raise
    except Exception as error:
        if failures is not None:
            # Before this rank leaves: then the others' connections break, and they fail too.
            failures.put((ranks.rank, f"{type(error).__name__}: {error}"[:_FAILURE_CHARACTERS]))
            time.sleep(_FAREWELL_SECONDS)
        raise
    finally:
        leave()


def _threads(placement: Placement) -> int:
    """Threads of a rank: torch's own number for one rank on this machine, an equal share of the cores for several."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched_by_torchrun() else placement.nproc
    return torch.get_num_threads() if processes == 1 else max(1, (os.cpu_count() or 1) // processes)


def _first_failure(failures: SimpleQueue[tuple[int, str]], error: Any) -> str:
    """Which rank failed first, and how.

    Of the ranks that end between two polls torch names any one, so the order of ``failures`` counts.
    """
    rank, failure = error.get_first_failure()
    # A killed rank wrote nothing, and the others may have failed for its loss. SIGTERM is what the agent itself sends.
    was_killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
    if not was_killed and not failures.empty():
        rank, text = failures.get()
        return f"rank {rank} failed: {_last_line(text)}"
    return f"rank {rank} failed: {_reason(failure)}"


def _reason(failure: Any) -> str:
    """The last line of what torch knows of a failure, or else the exit code."""
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", message)
    return _last_line(str(message)) or f"exit code {failure.exitcode}"


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
