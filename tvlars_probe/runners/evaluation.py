"""Loss and accuracy, each sample counted once whatever the number of ranks."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tvlars_probe.curvature.preserving import preserved
from tvlars_probe.data.batches import in_order
from tvlars_probe.reductions import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.data.images import TensorImages

PIECE = 1024
"""Most samples that a rank evaluates at once."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model computes: in the type of its parameters, or under autocast to bfloat16.

    Attributes:
        name: "float32", "bf16" or "float64".
        device: where the model computes.
    """

    name: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of parameters and inputs; with "bf16" they stay float32."""
        return torch.float64 if self.name == "float64" else torch.float32

    def context(self) -> contextlib.AbstractContextManager[object]:
        """The context in which a forward pass is made."""
        if self.name != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over samples.

    Attributes:
        loss: mean loss.
        acc1: top-1 accuracy in percent; None where nothing is classified.
        acc5: top-5 accuracy in percent; None where nothing is classified, or where there are fewer than five classes.
        samples: number of samples.
    """

    loss: float
    acc1: float | None
    acc5: float | None
    samples: int

    def named(self, prefix: str) -> dict[str, float | None]:
        """The figures as columns of the table ``epochs``, whose names begin with ``prefix``."""
        return {f"{prefix}_loss": self.loss, f"{prefix}_acc1": self.acc1, f"{prefix}_acc5": self.acc5}


class Tally:
    """Sums of loss and hits over one rank's samples, kept on the device so that counting doesn't make the host wait.

    Args:
        device: where the sums are kept.
        classifies: whether there are hits to count.
    """

    def __init__(self, device: torch.device, *, classifies: bool = True) -> None:
        self._classifies = classifies
        # Loss, top-1 hits, top-5 hits, samples: one tensor, so that one collective sums them all.
        self._sums = torch.zeros(4, dtype=accumulation_dtype(device), device=device)
        self._has_five = True

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        """Count some samples; ``loss_sum`` is the sum of their losses."""
        self._has_five = logits.shape[1] >= 5
        # A sample's label is at most once among its top five, so the sum over all columns counts top-5 hits.
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self._sums[:3] += torch.stack([figure.to(self._sums) for figure in (loss_sum, hits[:, 0].sum(), hits.sum())])
        self._sums[3] += len(labels)

    @torch.no_grad()
    def add_loss(self, loss_sum: Tensor, samples: int) -> None:
        """Count samples of which only the sum of their losses is known."""
        self._sums[0] += loss_sum.to(self._sums)
        self._sums[3] += samples

    def state_dict(self, ranks: Ranks) -> dict[str, Any]:
        """Every rank's sums, as plain values, which keep all bits of a float64. Every rank calls it."""
        return {"sums": [sums.tolist() for sums in ranks.gather(self._sums.cpu())], "has_five": self._has_five}

    def load_state_dict(self, state: Mapping[str, Any], ranks: Ranks) -> None:
        """Go on from a `state_dict`. If the number of ranks has changed, the first one takes all that was counted."""
        sums, there = state["sums"], len(state["sums"]) == ranks.world_size
        mine = sums[ranks.rank] if there else [sum(column) for column in zip(*sums, strict=True)]
        if there or ranks.is_first:
            self._sums += torch.tensor(mine, dtype=self._sums.dtype, device=self._sums.device)
        self._has_five = state["has_five"]

    def accuracy_here(self) -> float | None:
        """Top-1 accuracy of this rank's samples so far, in percent.

        None where nothing is classified, before the first sample, and where reading it would make the host wait.
        """
        if self._sums.device.type != "cpu" or not self._classifies:
            return None
        _, hits, _, samples = self._sums.tolist()
        return 100 * hits / samples if samples else None

    def scores(self, ranks: Ranks) -> Scores:
        """The means over all ranks' samples; NaN if there are none. Every rank calls it."""
        # A copy, as the sum over ranks is made in place.
        loss, hits, hits5, samples = ranks.sum(self._sums.clone()).tolist()
        if not samples:
            return Scores(math.nan, math.nan if self._classifies else None, None, 0)
        if not self._classifies:
            return Scores(loss / samples, None, None, int(samples))
        return Scores(
            loss / samples, 100 * hits / samples, 100 * hits5 / samples if self._has_five else None, int(samples)
        )


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over samples, in float32 at least: bfloat16 has fewer than three digits."""
    return F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, labels, reduction="sum")


@torch.no_grad()
def evaluate(model: nn.Module, images: TensorImages, ranks: Ranks, precision: Precision) -> Scores:
    """Scores of ``model`` in evaluation mode; afterwards it is what it was, bit for bit.

    Every rank calls it, evaluates its share of the images, and gets the scores over all of them.

    Args:
        model: the model itself, not a DDP wrapper: ranks may make different numbers of forward passes here.
        images: the images, on the device.
        ranks: this process among the others.
        precision: how the model computes.
    """
    tally = Tally(ranks.device)
    with preserved(model):
        model.eval()
        for piece in in_order(len(images), PIECE, ranks.rank, ranks.world_size):
            x, y = images.batch(torch.as_tensor(piece, device=ranks.device), precision.dtype)
            with precision.context():
                logits = model(x)
            tally.add(logits, y, loss_sum(logits, y))
    return tally.scores(ranks)
