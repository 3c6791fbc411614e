"""What a flush makes of the ranks' losses and counts: means over the global batch, samples seen so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tvlars_probe.probes.agreement import Agreement
    from tvlars_probe.probes.buffer import Drained


def over_ranks(
    drained: Drained, ranks: Agreement, samples: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], int | None]:
    """Mean losses over all ranks' samples, and the samples seen up to each step.

    Args:
        drained: this rank's rows.
        ranks: all of them call this in the same step.
        samples: seen before; None where unknown.

    Returns:
        the losses, the samples (−1 where unknown), and the samples seen after the last row.
    """
    losses = drained.losses
    known = np.array([row.samples is not None for row in drained.rows], dtype=bool)
    counts = np.array([1 if row.samples is None else row.samples for row in drained.rows], dtype=np.float64)
    if ranks.world_size > 1:
        sums = np.where(counts > 0, losses * counts, 0.0)
        table = torch.tensor(np.stack([sums, counts]), dtype=accumulation_dtype(ranks.device), device=ranks.device)
        sums, counts = ranks.sum(table).cpu().numpy().astype(np.float64)
        losses = sums / np.maximum(counts, 1)
    seen = np.full(len(known), -1, dtype=np.int64)
    for i, (is_known, count) in enumerate(zip(known, counts, strict=True)):
        samples = samples + int(count) if is_known and samples is not None else None
        seen[i] = -1 if samples is None else samples
    return losses, seen, samples
