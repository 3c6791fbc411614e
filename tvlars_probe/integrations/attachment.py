"""A recorder that a trainer's callback begins and ends: what all adaptors share."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, SupportsFloat

from tvlars_probe.errors import UserError
from tvlars_probe.probes.record import record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from tvlars_probe.probes.recorder import Recorder

SHARES = {"accuracy": "acc1", "acc": "acc1", "loss": "loss"}
"""Names of metrics that a trainer may have, after the part of the data and "_", and those of their columns."""


class Attachment:
    """The recorder of a callback, from the beginning of a training to its end.

    Args:
        path: as for `tvlars_probe.record`.
        settings: further arguments of `tvlars_probe.record`.

    Attributes:
        recorder: the recorder; None where nothing is being recorded.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.recorder: Recorder | None = None
        self._pause: AbstractContextManager[None] | None = None

    def begin(self, model: Any, optimizers: Any, kept: Mapping[str, Any] | None = None, **facts: Any) -> Recorder:
        """Begin to record; what the user has set comes before what the trainer tells (``facts``).

        A recorder that was never ended, because the trainer broke off without a word, is ended first.

        Args:
            model: as for `tvlars_probe.record`.
            optimizers: as for `tvlars_probe.record`.
            kept: what `keep` gave, from which the recording goes on; None begins another.
            facts: further arguments of `tvlars_probe.record`.
        """
        self.end(KeyboardInterrupt())
        settings, path = {**facts, **self.settings}, self.path
        if kept is not None:
            settings.pop("exists", None)  # the folder is to be there
            settings, path = {**settings, "resume": kept["recorder"]}, kept["path"]
        recorder = record(model, optimizers, path, **settings)
        recorder.stop_by_flag()
        recorder.__enter__()
        # Only now: of a recorder that could not begin nothing has to be ended.
        self.recorder = recorder
        atexit.register(self._at_exit)
        return recorder

    def keep(self) -> dict[str, Any] | None:
        """What a checkpoint needs to go on in the same trace; None where nothing is recorded. Every rank calls it.

        With ``exists="new"`` the folder isn't the path that the user gave: hence it is kept, too.
        """
        if self.recorder is None:
            return None
        return {"recorder": self.recorder.state_dict(), "path": os.fspath(self.recorder.path)}

    def without_recording(self, step: int, probe: str) -> UserError:
        """The error of a training that goes on from a checkpoint, of ``step``, in which nothing was kept."""
        return UserError(
            f"the checkpoint, of step {step}, holds no recording of {os.fspath(self.path)}: give the path of before, "
            f"or leave {probe} out"
        )

    def _at_exit(self) -> None:
        """End what a trainer left behind that has no call-back for errors: the script has ended with one."""
        # The interpreter keeps the error that ends a script here, before it calls this.
        error = getattr(sys, "last_value", None)
        self.end(error if isinstance(error, BaseException) else KeyboardInterrupt())

    def end(self, error: BaseException | None = None) -> None:
        """End the recording, if one is running, as leaving its ``with`` block would: with an error or without."""
        recorder, self.recorder = self.recorder, None
        self.go_on()
        if recorder is not None:
            atexit.unregister(self._at_exit)
            recorder.__exit__(None if error is None else type(error), error, None)

    def pause(self) -> None:
        """Leave the time until `go_on` out of the steps' seconds: the trainer evaluates, or saves."""
        if self.recorder is not None and self._pause is None:
            self._pause = self.recorder.untimed()
            self._pause.__enter__()

    def go_on(self) -> None:
        """End a pause, if there is one."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.__exit__(None, None, None)


def epoch_figures(metrics: Mapping[str, Any], parts: Mapping[str, str]) -> dict[str, float]:
    """The metrics that the table ``epochs`` has a column for, and that are numbers: losses, accuracies as shares of 1.

    Args:
        metrics: a trainer's metrics by name.
        parts: the trainer's word for a part of the data ("eval"), and the table's ("val").
    """
    found = {}
    for name, value in metrics.items():
        part, _, kind = name.partition("_")
        is_number = isinstance(value, SupportsFloat) and not isinstance(value, str)
        if part in parts and kind in SHARES and is_number:
            told = float(value)
            found[f"{parts[part]}_{SHARES[kind]}"] = told if kind == "loss" else 100 * told
    return found
