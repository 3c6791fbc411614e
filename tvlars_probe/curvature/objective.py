"""The function whose curvature is asked for: a model's mean loss over a fixed sample."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tvlars_probe.collectives import Ranks
from tvlars_probe.curvature import additivity
from tvlars_probe.curvature.agreeing import on_all_ranks
from tvlars_probe.curvature.batch_norm import batch_norm_mode, batch_norms, check_bn_mode
from tvlars_probe.curvature.batches import as_batches
from tvlars_probe.curvature.embeddings import rescale_rows
from tvlars_probe.curvature.losses import Supervised, as_number
from tvlars_probe.curvature.plain import make_plain
from tvlars_probe.curvature.preserving import preserved
from tvlars_probe.errors import NonFiniteLossError, UserError
from tvlars_probe.reductions import accumulation_dtype
from tvlars_probe.shards import reshard
from tvlars_probe.whole_tensors import is_dtensor, refuse_model, refuse_unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tvlars_probe.curvature.batches import Batch, Data

    Compute = Callable[[nn.Module, Batch], Tensor]
    Weights = Callable[[Batch], float | Tensor]

T = TypeVar("T")


def supervised(loss_fn: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """Return the function that computes ``loss_fn(model(inputs), targets)`` of a batch (inputs, targets)."""
    return Supervised(loss_fn)


def loss_given(loss_fn: Callable[[Tensor, Tensor], Tensor] | None, compute: Compute | None) -> Compute:
    """The loss of a probe, which is told by ``loss_fn`` or by ``compute``.

    Raises:
        UserError: by neither.
    """
    if compute is not None:
        return compute
    if loss_fn is None:
        raise UserError("a probe of no loss: give loss_fn, or compute=")
    return supervised(loss_fn)


def is_supervised(compute: Compute) -> bool:
    """Whether it was made by `supervised`, so that its batches are pairs."""
    return isinstance(compute, Supervised)


class Objective:
    """f(w) = Σ_b n_b·ℓ_b(w) / Σ_b n_b over batches b, those of all ranks that hold the sample.

    ℓ_b is the loss of a batch, n_b its weight: by default its number of samples, so that f is the mean over samples
    where ℓ_b is the mean over the batch's. The weights are the model's own; rows of embeddings with ``max_norm`` are
    first rescaled, as by a forward pass, and then held (`tvlars_probe.curvature.embeddings`).

    Inside `held` BatchNorm is in the mode asked for, and dropout, stochastic depth and hooks on gradients are off.
    Afterwards all that `tvlars_probe.curvature.preserving` names is what it was. Where there are several batches, the
    first `held` tests that f doesn't depend on how the sample is cut into them. That costs three forward passes over
    the sample, or more where all losses are alike (`tvlars_probe.curvature.additivity`).

    Args:
        model: the model itself, not a DDP wrapper.
        compute: the loss of a batch as a function of model and batch, for instance `supervised`.
        data: this rank's part of the sample, a batch or several. A batch is a tuple of tensors whose first dimension
            counts samples; of `supervised` it is a pair.
        bn_mode: mode of BatchNorm; see `tvlars_probe.curvature.batch_norm`.
        shards: the ranks that hold the sample; by default this process alone.
        weights: n_b as a function of the batch, a number >= 0 that is a sum over the batch's samples.
        is_sum_over_samples: False for a loss that joins the samples, of all ranks where there are several. It takes
            each rank's part as one batch, and isn't tested.
        statistics: the ranks over whose samples BatchNorm takes its statistics; by default ``shards``.
        takes_dtensors: whether the model may hold DTensors. Of such a model only `value` can be had, and its loss isn't
            tested.

    Attributes:
        model: the model.
        compute: the loss of a batch.
        bn_mode: mode of BatchNorm.
        shards: the ranks that hold the sample.
        sample: this rank's batches.
        batches: those of them that count, in the order of ``weights``.
        weights: n_b of each.
        total_weight: Σ n_b over all ranks.
        samples: number of samples, of all ranks.
        is_sum_over_samples: as given.

    Raises:
        UserError: data of another form; a rank has no samples, or only such as weigh nothing; an unknown mode; several
            batches on a rank where the loss or train-mode BatchNorm joins all samples.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: Compute,
        data: Data,
        *,
        bn_mode: str = "eval",
        shards: Ranks | None = None,
        weights: Weights | None = None,
        is_sum_over_samples: bool = True,
        statistics: Ranks | None = None,
        takes_dtensors: bool = False,
    ) -> None:
        check_bn_mode(bn_mode)
        self.model, self.compute, self.bn_mode = model, compute, bn_mode
        self.shards = shards or Ranks()
        self._statistics = statistics or self.shards
        self._weigh, self.is_sum_over_samples = weights, is_sum_over_samples
        self._on_all_ranks(partial(_refuse_unreadable, model, takes_dtensors=takes_dtensors))
        given = self._on_all_ranks(lambda: as_batches(data, pairs=is_supervised(compute)))
        self.sample = [batch for batch in given if len(batch[0])]
        found = self._on_all_ranks(lambda: [self.weight_of(batch) for batch in self.sample])
        # What weighs nothing is no part of f; its loss may be NaN, as the mean over no targets is.
        self.batches = [batch for batch, weight in zip(self.sample, found, strict=True) if weight]
        self.weights = [weight for weight in found if weight]
        mine = sum(len(batch[0]) for batch in self.sample)
        # Every rank learns of another's empty share, and all raise: none is left waiting in a later collective.
        counts = torch.tensor([mine, len(self.batches), int(not self.batches)], device=self.device)
        self.samples, self._pieces, idle = (int(count) for count in self.shards.sum(counts).tolist())
        if idle:
            reason = "" if weights is None else ", or weights= gives 0 for all that one of them has"
            raise UserError(
                f"the sample is too small: {self.samples} samples over {self.shards.world_size} rank(s){reason}"
            )
        total = torch.tensor([sum(self.weights)], dtype=accumulation_dtype(self.device), device=self.device)
        self.total_weight = self.shards.sum(total).item()
        self._on_all_ranks(self._refuse_pieces_of_a_whole)
        self._holds, self._is_tested, self._writes_to_inputs = 0, False, True

    def _on_all_ranks(self, work: Callable[[], T]) -> T:
        """Do work at whose end no rank waits for another; where it raises on one of them, all raise."""
        return on_all_ranks(self.shards, work)

    def weight_of(self, batch: Batch) -> float:
        """n_b of a batch.

        Raises:
            UserError: it is no number of 0 or more.
        """
        if self._weigh is None:
            return float(len(batch[0]))
        given: Any = self._weigh(batch)
        is_number = isinstance(given, Real) or (isinstance(given, Tensor) and given.numel() == 1 and given.isreal())
        if not is_number:
            shape = f" of shape {tuple(given.shape)}" if isinstance(given, Tensor) else ""
            raise UserError(f"weights= gives a {type(given).__name__}{shape} for a batch: it must give one number")
        value = float(given)
        if not 0 <= value < math.inf:
            raise UserError(f"weights= gives {value:g} for a batch (allowed: 0 or more, and finite)")
        return value

    def _refuse_pieces_of_a_whole(self) -> None:
        if len(self.sample) > 1 and not self.is_sum_over_samples:
            raise UserError(f"the loss joins all samples, which must be one batch (got {len(self.sample)})")
        if len(self.sample) > 1 and self.bn_mode == "train" and batch_norms(self.model):
            raise UserError(
                f"BatchNorm in train mode takes statistics over the whole sample, which must be one batch "
                f"(got {len(self.sample)}): give it whole, or use mode 'frozen-batch' or 'eval'"
            )

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def is_sharded(self) -> bool:
        """Whether the model holds DTensors."""
        return any(is_dtensor(p) for p in self.model.parameters())

    @property
    def is_held(self) -> bool:
        """Whether the model is inside `held`."""
        return self._holds > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put the model into the state in which it is probed; everything is put back, also after an exception.

        Inside another `held` of the same objective it does nothing.

        Raises:
            UserError: the loss isn't a mean over samples, or not by the weights given.
        """
        if self._holds:
            yield
            return
        if not self._is_tested:
            with torch.inference_mode(False):  # parts of the sample are made there
                self._test()
            self._is_tested = True
        with self._hold(self.bn_mode):
            yield

    @contextlib.contextmanager
    def _hold(self, bn_mode: str) -> Iterator[None]:
        """`held`, with BatchNorm in a mode of its own."""
        # A loss may be a module, too, with a mode and buffers that are part of f.
        others = (self.compute, getattr(self.compute, "loss_fn", None))
        modules = [self.model, *(other for other in others if isinstance(other, nn.Module))]
        self._holds += 1
        try:
            with (
                # The caller may train in bfloat16, where a Hessian keeps two digits, or evaluate without gradients. No
                # cache: the model may use autocast itself, and would go on with the weights of another point.
                torch.autocast(self.device.type, enabled=False, cache_enabled=False),
                torch.inference_mode(False),
                torch.enable_grad(),
                sdpa_kernel(SDPBackend.MATH),  # the fused kernels of attention can't be differentiated twice
                preserved(*modules),
            ):
                for root in modules:
                    make_plain(root)
                # Running statistics differ from rank to rank. The first rank's go into the copies that we work on.
                self.shards.broadcast(b for b in self.model.buffers() if not is_dtensor(b))
                rescale_rows(self.model, self.shards, partial(self._on_all_ranks, self._forward_by_batches))
                with batch_norm_mode(self.model, bn_mode, self._statistics, partial(self._on_all_ranks, self._forward)):
                    yield
        finally:
            self._holds -= 1

    def _forward_by_batches(self) -> None:
        """Pass all of this rank's sample through the model."""
        for batch in self.sample:
            self.loss_of(batch)

    def _forward(self) -> None:
        """Pass all of this rank's sample through the model at once, as statistics of the sample need it."""
        self.loss_of(tuple(torch.cat(tensors) for tensors in zip(*self.sample, strict=True)))

    def _test(self) -> None:
        """Refuse a loss that would depend on how the sample is cut into batches.

        Raises:
            UserError: it does.
        """
        if self._pieces < 2 or not self.is_sum_over_samples or self.is_sharded:
            return
        mixture = self._on_all_ranks(lambda: additivity.mixture(self.batches))
        # Some of the first rank's samples join the others': ranks are compared with one another, too.
        sent = self.shards.from_first([[t.cpu() for t in part] for part in mixture])
        guest = [] if self.shards.is_first else [tuple(t.to(self.device) for t in part) for part in sent]
        chains = self._on_all_ranks(lambda: [[*mixture, *guest], additivity.whole(self.batches)])
        test = additivity.Additivity(
            chains=chains,
            loss_of=self.loss_of,
            weight_of=self.weight_of,
            types={p.dtype for p in self.model.parameters()},
            is_weighted=self._weigh is not None,
        )
        # A mode in which a sample's loss doesn't depend on the others.
        mode = "frozen-batch" if self.bn_mode == "train" else self.bn_mode
        for point in additivity.POINTS:
            with self._hold(mode), torch.no_grad():
                additivity.move(self.model.parameters(), point)
                is_enough = self._on_all_ranks(partial(test.passes_at, point))
            if not self.shards.any(not is_enough):
                return

    def loss_of(self, batch: Batch) -> Tensor:
        """ℓ of a batch, 0-dim. Use it inside `held`.

        Raises:
            UserError: the loss isn't one real number in a tensor.
        """
        # A model that works in place on its inputs would change the sample from pass to pass.
        given = tuple(t.clone() for t in batch) if self._writes_to_inputs else batch
        versions = [t._version for t in given]
        loss: Any = self.compute(self.model, given)
        self._writes_to_inputs = self._writes_to_inputs and [t._version for t in given] != versions
        return as_number(loss)

    def term(self, index: int, batch: Batch | None = None) -> Tensor:
        """Batch ``index``'s share of f, 0-dim; the shares of all ranks' batches sum to f(w). Use it inside `held`.

        Args:
            index: of the batch.
            batch: its tensors in another type, to be used instead.
        """
        batch = self.batches[index] if batch is None else batch
        return self.loss_of(batch) * (self.weights[index] / self.total_weight)

    def value(self) -> float:
        """f(w) by forward passes alone, on every rank; it may be NaN or infinite. Use it inside `held`."""
        return self._added([])

    def _added(self, terms: list[Tensor]) -> float:
        """f(w) from the terms of this rank's first batches, which are known, and of the others."""
        total = torch.zeros(1, dtype=accumulation_dtype(self.device), device=self.device)
        with torch.no_grad():
            for index in range(len(self.batches)):
                total += (terms[index] if index < len(terms) else self.term(index)).to(total)
        reshard(self.model)
        return self.shards.sum(total).item()

    def loss(self) -> float:
        """f(w), on every rank.

        Raises:
            NonFiniteLossError: f(w) isn't finite.
            UserError: f has no graph that leads to a parameter.
        """
        with self.held():
            # One batch shows whether there is a graph; what is sharded has no use for one.
            with torch.set_grad_enabled(not self.is_sharded):
                first = self.term(0)
                is_cut_off = torch.is_grad_enabled() and not first.requires_grad
            value = self._added([first.detach()])
            is_cut_off &= any(p.requires_grad for p in self.model.parameters())
            if self.shards.any(is_cut_off):
                raise UserError(
                    "the loss depends on no parameter that requires a gradient, or is cut off from them (by detach(), "
                    "item() or no_grad())"
                )
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the model's loss on the sample is {value}: there is no curvature to compute")
        return value


def _refuse_unreadable(model: nn.Module, *, takes_dtensors: bool) -> None:
    """Refuse a model that has no parameters, or some that this rank can't read.

    Raises:
        UserError: it is one.
    """
    refuse_model(model, takes_dtensors=takes_dtensors)
    if not any(True for _ in model.parameters()):
        raise UserError("the model has no parameters")
    refuse_unreadable(model.named_parameters(), takes_dtensors=takes_dtensors)
