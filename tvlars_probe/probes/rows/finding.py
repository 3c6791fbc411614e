"""What becomes of findings: rows of a table, a call-back of the user's, and the end of the loop."""

from __future__ import annotations

import traceback
import warnings
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import UserError
from tvlars_probe.findings.finding import finding_columns
from tvlars_probe.findings.ids import known_rules
from tvlars_probe.findings.inspector import Inspector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.findings.window import Window
    from tvlars_probe.traces.journal import Journal


class Finder:
    """Looks at the rows of each flush, on the rank that writes them.

    Args:
        rules: ids of the rules to apply, or a word for several of them.
        on_finding: called with each finding; what it raises is told once, and it is called no more.
        stop_on: ids of the rules whose findings end the loop; they are applied, whatever ``rules`` says.

    Attributes:
        found: what was found since the recorder began or was resumed.
        stops_on: the first finding of a rule of ``stop_on``; None before it.

    Raises:
        UserError: there is no such rule, or ``on_finding`` can't be called.
    """

    def __init__(
        self, rules: Iterable[str], on_finding: Callable[[Finding], object] | None, stop_on: Iterable[str]
    ) -> None:
        self._stop_on, applied = known_rules(stop_on, "stop_on"), known_rules(rules, "findings")
        if on_finding is not None and not callable(on_finding):
            raise UserError(f"on_finding= takes a function of a finding, got {on_finding!r:.60}")
        self._inspector: Inspector | None = Inspector(dict.fromkeys((*applied, *self._stop_on)))
        self._on_finding = on_finding
        self.found: list[Finding] = []
        self.stops_on: Finding | None = None

    def look(self, window: Window, journal: Journal) -> None:
        """Hand what rules find in these steps to the journal and to the call-back."""
        if self._inspector is None:
            return
        # A fault in a rule must not end a training.
        try:
            found = self._inspector.inspect(window)
        except Exception as error:
            self._inspector = None
            self._note(journal, f"findings end before step {window.first_step}: a rule has failed", error)
            return
        if not found:
            return
        journal.append("findings", finding_columns(found))
        self.found += found
        for finding in found:
            if self.stops_on is None and finding.rule in self._stop_on:
                self.stops_on = finding
            self._call(finding, journal)

    def _call(self, finding: Finding, journal: Journal) -> None:
        if self._on_finding is None:
            return
        try:
            self._on_finding(finding)
        except Exception as error:
            self._on_finding = None
            self._note(journal, f"on_finding failed at step {finding.step}, and is called no more", error)

    def _note(self, journal: Journal, text: str, error: Exception) -> None:
        reason = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
        journal.manifest.notes.append(f"{text}: {reason}")
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # where warnings are errors, this one would end the training
            warnings.warn(f"{text}: {reason}", RuntimeWarning, stacklevel=2)

    def begin_phase(self) -> None:
        """Another model and other optimizers follow."""
        if self._inspector is not None:
            self._inspector.begin_phase()

    def state(self) -> dict[str, Any]:
        """What `load` takes: plain values."""
        return {} if self._inspector is None else self._inspector.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. One that doesn't fit is passed over: the rules then begin anew."""
        if self._inspector is not None and state:
            try:
                self._inspector.load(state)
            except (ValueError, OverflowError):
                self._inspector = Inspector(self._inspector.names)
