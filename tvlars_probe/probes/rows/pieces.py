"""Which steps' pieces are read, and how they come into the rows of a buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tvlars_probe.curvature.batch_norm import is_our_own
from tvlars_probe.errors import UserError
from tvlars_probe.probes.readers.pieces import PieceReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from tvlars_probe.collectives import Ranks
    from tvlars_probe.probes.readers.pieces import Told
    from tvlars_probe.probes.rows.buffer import StepBuffer

ONE_PIECE = (
    "noise=True compares the gradients of a step's pieces, and there is one piece a step: accumulate the gradient of "
    "several micro-batches, train on several ranks, or measure with probes=[tvlars_probe.NoiseProbe(...)]"
)


def refuse_joined_samples(model: nn.Module | None, ranks: Ranks) -> None:
    """Refuse a model whose BatchNorm joins the samples of all ranks: then no piece has a gradient of its own.

    Raises:
        UserError: it has such a layer, and there are several ranks.
    """
    for name, module in () if model is None or ranks.world_size == 1 else model.named_modules():
        if isinstance(module, nn.SyncBatchNorm) or (isinstance(module, _BatchNorm) and is_our_own(module)):
            raise UserError(
                f"noise: {name} ({type(module).__name__}) takes its statistics over all ranks, so that no piece of a "
                "batch has a gradient of its own; leave it out, and measure with probes=[tvlars_probe.NoiseProbe(..., "
                "piece=...)]"
            )


class PieceRows:
    """Reads the gradients of pieces in the steps that are recorded.

    Args:
        reads: whether anything is read at all.
        every: n, where the steps 0, n, 2n, ... are recorded.
        is_alone: whether there is one rank.
    """

    def __init__(self, *, reads: bool, every: int, is_alone: bool) -> None:
        self.reads, self._every, self._is_alone = reads, every, is_alone
        self._reader: PieceReader | None = None
        self._optimizers: Sequence[Optimizer] = ()
        self._has_taken = False

    def lay_out(self, model: nn.Module | None, optimizers: Sequence[Optimizer]) -> None:
        """Watch the parameters of these optimizers from now on, and no others."""
        self.detach()
        self._optimizers = optimizers
        if self.reads:
            self._reader = PieceReader(model, optimizers)
            self._reader.attach()

    def attach(self) -> None:
        """Watch parameters that have been unfrozen meanwhile, too."""
        if self._reader is not None:
            self._reader.attach()

    def detach(self) -> None:
        """Take all hooks off."""
        if self._reader is not None:
            self._reader.detach()
        self._reader = None

    def tell(self, piece: Told) -> None:
        """Keep what the loop tells of a piece."""
        if self._reader is not None and self._reader.is_on:
            self._reader.tell(piece)

    def put(self, index: int, buffer: StepBuffer | None) -> None:
        """Put the pieces of the update that optimizer ``index`` is about to make into the buffer's open row.

        Args:
            index: of the optimizer.
            buffer: takes them; None where the step isn't recorded.

        Raises:
            UserError: in the first step there is but one piece: no two gradients can be compared.
        """
        if self._reader is None:
            return
        taken = self._reader.take(index)
        if buffer is None:
            return
        if taken.number == 1 and self._is_alone and not self._has_taken:
            raise UserError(ONE_PIECE)
        self._has_taken = True
        used = self._reader.check_sums(index)
        # A gradient scaler leaves it to a fused optimizer to unscale inside its step.
        scale = getattr(self._optimizers[index], "grad_scale", None)
        buffer.put_pieces(index, taken, used if scale is None else used / scale.to(used))

    def step_made(self, step: int, *, reads_on: bool) -> None:
        """Decide whether the backward passes that come next are read.

        Args:
            step: index of the step that was made.
            reads_on: whether norms are read at all.
        """
        if self._reader is not None:
            # They belong to the next step; with several optimizers maybe to this one, which others have still to make.
            steps = (step + 1, *([step] if len(self._optimizers) > 1 else []))
            self._reader.is_on = reads_on and any(one % self._every == 0 for one in steps)
