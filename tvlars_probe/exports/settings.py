"""What is exported, where to, and how much: the settings of one export."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tvlars_probe.errors import UserError, unknown
from tvlars_probe.exports.budget import BUDGET, PROJECT, TRACKERS
from tvlars_probe.exports.exporter import Exporter

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence


class Export:
    """One export of a run: the tracker and what it is sent.

    Args:
        to: name of a tracker (tensorboard, wandb, trackio, mlflow), or an exporter of your own: an object with the
            methods of `tvlars_probe.exports.exporter.Exporter`.
        layers: patterns of the tensors of which all figures of all recorded steps are sent, such as ``"*.weight"``.
        budget: scalars of a flush otherwise.
        folder: where a tracker that writes files puts them; by default the run's ``exports/<tracker>``.
        project: the tracker's project, or experiment.

    Raises:
        UserError: no such tracker, or a setting is outside its range.
    """

    def __init__(
        self,
        to: str | Exporter,
        *,
        layers: Sequence[str] = (),
        budget: int = BUDGET,
        folder: str | os.PathLike[str] | None = None,
        project: str = PROJECT,
    ) -> None:
        if isinstance(to, str):
            if to not in TRACKERS:
                raise unknown("tracker", to, TRACKERS)
        elif isinstance(to, type) or not isinstance(to, Exporter):
            raise UserError(
                f"export= takes names of trackers ({', '.join(TRACKERS)}) and objects with the methods begin, scalars, "
                f"alert, flush, note and end, got {to!r:.60}"
            )
        patterns = None if isinstance(layers, str) or not isinstance(layers, Iterable) else tuple(layers)
        if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
            raise UserError(f"layers={layers!r:.60}: give a list of patterns, such as ['*.weight']")
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
            raise UserError(f"a budget of {budget!r:.20} scalars a flush isn't possible (allowed: 1 or more)")
        self.to, self.layers, self.budget = to, patterns, budget
        self.folder = None if folder is None else Path(folder).expanduser()
        self.project = project

    @property
    def name(self) -> str:
        """The tracker's name, or the class of an exporter of somebody's own."""
        return self.to if isinstance(self.to, str) else type(self.to).__name__

    def open(self) -> Exporter:
        """The exporter. The tracker's package is imported here.

        Raises:
            UserError: the package is missing, or can't be imported.
        """
        if not isinstance(self.to, str):
            return self.to
        missing = f"{self.to} isn't installed: pip install 'tvlars-probe[{self.to}]'"
        if find_spec(self.to) is None:
            raise UserError(missing)
        try:
            with _random_state_kept():
                module = import_module(f"tvlars_probe.exports.{self.to}")
        except ImportError as error:
            raise UserError(
                f"{self.to} can't be imported: {error}; {missing.partition(': ')[2]} installs it"
            ) from error
        exporter: Exporter = getattr(module, TRACKERS[self.to])()
        return exporter


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put Python's and NumPy's random generators back: trackio draws while it is imported."""
    import numpy as np  # here, since settings are needed before it is

    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def exports_of(given: Sequence[str | Export | Exporter] | str | Export) -> list[Export]:
    """What ``export=`` of `tvlars_probe.record` stands for.

    Raises:
        UserError: no such tracker, no exporter, or a tracker is given twice.
    """
    listed = [given] if isinstance(given, str | Export | Exporter) or not isinstance(given, Iterable) else [*given]
    exports = [one if isinstance(one, Export) else Export(one) for one in listed]
    named = [one.to for one in exports if isinstance(one.to, str)]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise UserError(f"export= names {twice} twice: one export to a tracker is possible")
    return exports
