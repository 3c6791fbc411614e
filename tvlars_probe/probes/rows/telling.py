"""Where a loop tells of its steps, and whether its iterations can be told apart by that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvlars_probe.probes.rows.buffer import StepRow


class Telling:
    """Watches the calls of ``log`` and the rows that end, and warns at the end of a loop that calls it elsewhere.

    A call of ``log`` ends an iteration, and its row. Where the loop doesn't call it, a row ends when an optimizer steps
    that already has. That finds the iterations of one optimizer, and of several that all step in every iteration. Of
    others it may join the updates of two iterations, or part those of one.

    A call may tell of no step: gradients are accumulated, or a scaler skipped it. But where such calls are the last
    ones, and more than ever came between two steps, the loop goes on with an optimizer that isn't recorded.
    """

    def __init__(self) -> None:
        self._without_step = self._late = 0
        self._in_vain = self._most_in_vain = self._last_in_vain = 0
        self._left_untold = self._is_unclear = False
        self._forget()

    def _forget(self) -> None:
        # Of one phase: the optimizers that have stepped, the least number in a row, and their order in untold rows.
        self._stepped: set[int] = set()
        self._fewest: int | None = None
        self._order: list[int] | None = None
        self._orders_differ = False

    def begin_phase(self) -> None:
        """Other optimizers follow."""
        self._last_in_vain = self._unseen
        self._in_vain = self._most_in_vain = 0
        self._is_unclear |= self._phase_is_unclear
        self._forget()

    def told_without_row(self) -> None:
        """``log`` was called, and there was no row: no optimizer had stepped since the last one was written."""
        if self._left_untold:
            self._late += 1
        else:
            self._without_step += 1
        self._left_untold = False

    def told_in_vain(self) -> None:
        """``log`` was called, and no optimizer had stepped since the last call."""
        self._in_vain += 1

    def row_begins(self) -> None:
        """A step's row is opened."""
        self._left_untold = False
        self._most_in_vain, self._in_vain = max(self._most_in_vain, self._in_vain), 0

    def row_ends(self, row: StepRow) -> None:
        """A row that holds updates is closed."""
        self._left_untold = not row.told
        self._stepped |= {*row.stepped}
        self._fewest = len(row.stepped) if self._fewest is None else min(self._fewest, len(row.stepped))
        if not row.told:
            self._orders_differ |= self._order is not None and self._order != row.stepped
            self._order = [*row.stepped]  # a copy: a flush takes skipped updates out of the row's own

    @property
    def _unseen(self) -> int:
        """The number of calls at the end, of this phase or an earlier one, that seem to tell of steps of others."""
        return self._in_vain if self._in_vain > 2 * self._most_in_vain + 2 else self._last_in_vain

    @property
    def _phase_is_unclear(self) -> bool:
        """Whether rows may be other than iterations: some weren't told of, and they are not all of all optimizers."""
        unequal = self._fewest is not None and self._fewest < len(self._stepped)
        return self._order is not None and (unequal or self._orders_differ)

    def warnings(self, steps: int, last: StepRow | None) -> Iterator[str]:
        """Yield what to tell the user of a loop that seems to call ``log`` in the wrong place; nothing for any other.

        Args:
            steps: number of updates made.
            last: the row that is still open.
        """
        if self._without_step and not steps:
            yield (
                "rec.log() was called, but no step of the optimizer was seen: record the optimizer whose step() is "
                "called (of a wrapper the inner one), and call rec.log() after it"
            )
        if self._without_step == 1 and steps > 1 and last is not None and not last.told:
            yield (
                "rec.log() was called before the first optimizer.step(), and not after the last: each call told of the "
                "step before. Call it after step()"
            )
        elif self._is_unclear or self._phase_is_unclear:
            yield (
                "the recorded optimizers stepped unequally, and not every iteration ended with rec.log(): a row may "
                "hold updates of two iterations, or part of one. Call rec.log() once an iteration, after its last "
                "step(); it needs no argument"
            )
        if steps and self._unseen:
            yield (
                f"the last {self._unseen} calls of rec.log() told of no step of the recorded optimizers: if the loop "
                "made a new one, its steps are not recorded. Call rec.begin_phase() when another optimizer takes over"
            )
        if self._late:
            yield (
                f"{self._late} call(s) of rec.log() came after flush(), state_dict() or begin_phase(), when the row of "
                "the step had been written: it lacks what they told. Call rec.log() right after step()"
            )
