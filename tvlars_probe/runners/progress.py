"""Showing how far a run is: as a bar on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from torch import Tensor

    from tvlars_probe.runners.evaluation import Tally


class Silent:
    """The reporter of ranks that show nothing. It is the base of the others: the training loop calls its methods."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self, *, epoch: int, step: int, samples: int, lr: float, loss: Tensor, tally: Tally) -> None:
        """Take note of an update.

        Args:
            epoch: index of the epoch, from 0.
            step: index of the update in the phase, from 0.
            samples: samples of the global batch.
            lr: learning rate of the update.
            loss: mean loss of this rank's share; read only where that doesn't make the host wait.
            tally: scores of the epoch so far; likewise read only there.
        """

    def epoch(self, *, epoch: int, figures: Mapping[str, float | None]) -> None:
        """Take note of an epoch that is finished and evaluated; ``figures`` are columns of the table ``epochs``."""

    def finding(self, text: str) -> None:
        """Take note of what a rule has found."""


class _Speaking(Silent, ABC):
    """Base of the reporters that show something: it computes the figures.

    Args:
        total_steps: updates of the phase.
        epochs: epochs of the phase.
        first_step: updates of the phase that were made before this process began.
        label: what each epoch's line begins with.

    Attributes:
        interval: least seconds between two calls of `show`; after the phase's last step it is always called.
    """

    interval: float

    def __init__(self, total_steps: int, epochs: int, first_step: int = 0, label: str | None = None) -> None:
        self.total_steps, self.epochs, self.first_step, self.label = total_steps, epochs, first_step, label
        self._samples = 0
        self._started = self._shown = time.monotonic()

    def step(self, *, epoch: int, step: int, samples: int, lr: float, loss: Tensor, tally: Tally) -> None:
        self._samples += samples
        now = time.monotonic()
        if now - self._shown < self.interval and step + 1 < self.total_steps:
            return
        self._shown = now
        figures = [f"lr {lr:.3g}", f"{self._samples / max(now - self._started, 1e-9):,.0f} img/s"]
        # An accuracy is there only where reading the device's values is free: so the loss may be read, too.
        if (accuracy := tally.accuracy_here()) is not None:
            figures = [f"loss {loss.item():.3f}", f"acc {accuracy:.1f} %", *figures]
        done = step + 1 - self.first_step
        self.show(epoch, step, "  ".join(figures), (now - self._started) / done * (self.total_steps - step - 1))

    @abstractmethod
    def show(self, epoch: int, step: int, figures: str, seconds_left: float) -> None:
        """Show how far the phase is, after the update ``step``."""

    def line(self, epoch: int, figures: Mapping[str, float | None]) -> str:
        """The line about a finished epoch."""
        parts = [self.label] if self.label else []
        for name in ("train", "val", "test"):
            loss, accuracy = figures.get(f"{name}_loss"), figures.get(f"{name}_acc1")
            if loss is not None:
                parts.append(f"{name} loss {loss:.4f}" + ("" if accuracy is None else f"  acc {accuracy:.2f} %"))
        parts.append(f"{figures['seconds']:.1f} s")
        return f"epoch {epoch + 1}/{self.epochs}  {'   '.join(parts)}"


class Lines(_Speaking):
    """A line per epoch, and one every half minute within long epochs."""

    interval = 30.0

    def show(self, epoch: int, step: int, figures: str, seconds_left: float) -> None:
        if step + 1 < self.total_steps:  # after the last step the epoch's own line follows
            where = f"epoch {epoch + 1}/{self.epochs}  step {step + 1}/{self.total_steps}"
            say(f"{where}  {figures}  {clock(seconds_left)} left")

    def epoch(self, *, epoch: int, figures: Mapping[str, float | None]) -> None:
        self._shown = time.monotonic()
        say(self.line(epoch, figures))

    def finding(self, text: str) -> None:
        say(f"finding in {text}")


def say(line: str) -> None:
    """Print a line. Whoever closes the other end of the pipe (``| head``) silences the run, and doesn't end it."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # From now on stdout is /dev/null: later lines, and Python's flush at exit, would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Bar(_Speaking):
    """A progress bar with loss, accuracy, learning rate, speed and the time left."""

    interval = 0.1

    def __init__(self, total_steps: int, epochs: int, first_step: int = 0, label: str | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        super().__init__(total_steps, epochs, first_step, label)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(
            "", total=total_steps, completed=first_step, epoch=1, epochs=epochs, figures=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, epoch: int, step: int, figures: str, seconds_left: float) -> None:
        figures = f"{figures}  {clock(seconds_left)} left"
        self._progress.update(self._task, completed=step + 1, epoch=epoch + 1, figures=figures)

    def epoch(self, *, epoch: int, figures: Mapping[str, float | None]) -> None:
        self._progress.console.print(self.line(epoch, figures), highlight=False)

    def finding(self, text: str) -> None:
        self._progress.console.print(f"finding in {text}", style="yellow", highlight=False, markup=False)


class HeadedBar(Bar):
    """A progress bar below a line that says what it is of. It leaves nothing behind."""

    def __init__(self, heading: str, *args: Any) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        super().__init__(*args)
        self._live = Live(Group(Text(heading), self._progress), console=self._progress.console, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def epoch(self, *, epoch: int, figures: Mapping[str, float | None]) -> None:
        return None

    def finding(self, text: str) -> None:
        return None


def reporter(
    *, speaks: bool, total_steps: int, epochs: int, first_step: int, label: str | None = None, heading: str = ""
) -> Silent:
    """The reporter for this process: a silent one, a bar on a terminal, or lines. Arguments as for `_Speaking`.

    Args:
        speaks: whether to show anything.
        heading: with it a bar below this line is all that is shown, and only on a terminal.
    """
    if not speaks:
        return Silent()
    if heading:
        seen = sys.stderr.isatty()
        return HeadedBar(heading, total_steps, epochs, first_step, label) if seen else Silent()
    kind = Bar if sys.stderr.isatty() else Lines
    return kind(total_steps, epochs, first_step, label)


def clock(seconds: float) -> str:
    """A duration as people write it: 42 s, 3:07 min, 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


@contextlib.contextmanager
def status_line(*, speaks: bool, interval: float = 10.0) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being computed: one line that is renewed on a terminal, plain lines elsewhere.

    Args:
        speaks: whether to show anything.
        interval: least seconds between two plain lines.

    Yields:
        a function that is called with each new text.
    """
    if not speaks:
        yield lambda _: None
        return
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            yield lambda text: status.update(text)
        return
    shown = time.monotonic()

    def say(text: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= interval:
            shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    yield say
