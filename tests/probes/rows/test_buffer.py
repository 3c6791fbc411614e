"""Rows on the device; here with CPU tensors in the place of an accelerator's."""

from __future__ import annotations

import numpy as np
import torch

from tvlars_probe.probes.readers.columns import COLUMNS
from tvlars_probe.probes.rows.buffer import StepBuffer


def test_of_updates_that_an_accelerator_skipped_the_others_in_their_row_stay() -> None:
    """Two optimizers of two and of one parameter; what each step found is known only when the rows are drained."""
    overflows = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (None, 0.0)]
    buffer = StepBuffer((0, 2, 3), torch.device("cpu"))
    for row, found in enumerate(overflows):
        opened = buffer.open_row(recorded=True, phase="train")
        opened.phi = 0.5
        for index, (first, last) in enumerate([(0, 2), (2, 3)]):
            flags = [True] * (last - first)
            buffer.put(first, torch.full((len(COLUMNS), len(flags)), row), flags, flags)
            buffer.put_lr(slice(first, last), 0.1)
            buffer.put_skipped(index, None if found[index] is None else torch.tensor([found[index]]))
            opened.stepped.append(index)
        buffer.put_loss(float(row))
    drained = buffer.drain().without_skipped()
    assert drained.losses.tolist() == [0.0, 1.0, 2.0, 4.0]
    assert [row.stepped for row in drained.rows] == [[0, 1], [1], [0], [0, 1]]
    active = [[True, True, True], [False, False, True], [True, True, False], [True, True, True]]
    assert [row.active.tolist() for row in drained.rows] == active
    assert [(~np.isnan(row.lr)).tolist() for row in drained.rows] == active
    assert [row.phi for row in drained.rows][::2] == [0.5, 0.5]
    assert np.isnan(drained.rows[1].phi)
    assert not len(buffer)
    assert not buffer.skipped.any()
