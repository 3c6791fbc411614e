"""The events of a recorded training loop."""

from __future__ import annotations

from typing import Protocol


class LoopEvents(Protocol):
    """The events of a recorded loop, and what the recorder does at each.

    ::

        with record(model, optimizer, path) as rec:     # the journal is opened, hooks are attached
            for x, y in batches:
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
                |   before_update(0)                    # gradients g are there, the weights are still w:
                |                                       #   probes measure, a row is opened, ‖w‖ ‖g‖ ⟨w,g⟩ are read
                |   w ← w + Δw
                |   after_update(0)                     # the weights are w + Δw:
                |                                       #   ‖Δw‖ is read, and what the optimizer leaves behind;
                |                                       #   probes measure Δw, at copies of w
                rec.log(loss=loss)                      # the row gets the loss, the ranks agree on what comes next
            ...                                         # a flush, when it is due: rows cross to the journal
                                                        # the last rows are flushed, the journal is closed

    With several optimizers a row holds what they update until ``rec.log`` is called, each at most once: the next row
    also begins as soon as one of them steps again. A step with a closure computes its gradients itself;
    ``before_update`` then comes after the closure's first call.
    """

    def before_update(self, index: int) -> None:
        """Optimizer ``index`` is about to update its weights."""

    def after_update(self, index: int, started: float) -> None:
        """Optimizer ``index`` has updated its weights; the hook was entered at ``started`` (`time.perf_counter`)."""
