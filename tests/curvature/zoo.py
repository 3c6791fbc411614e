"""Models that a forward or backward pass may change, and everything by which a change would be noticed."""

from __future__ import annotations

import pickle
import random
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    Fingerprint = dict[str, Any]


def dense(first: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(first or nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def words(first: nn.Module, features: int) -> nn.Sequential:
    """On ``inputs`` as indices of words."""
    return nn.Sequential(Words(), first, nn.Flatten(), nn.Linear(features, 3))


class Words(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.abs() * 10).long().clamp(max=19)


class TiedWords(nn.Module):
    """Its embedding is its head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.table = Words(), nn.Embedding(20, 6, max_norm=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.table(self.words(x)).mean(1), self.table.weight[:3])


class RenormalisedByHand(nn.Module):
    """Rescales its rows as embeddings do, but shows no ``max_norm``; the bias goes by ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(20, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        self.bias.data = self.bias.data.clamp(-0.5, 0.5)
        return F.embedding(Words()(x), self.weight, max_norm=1.0).mean(1) + self.bias


class Lazy(nn.Module):
    """Makes buffers, a parameter's layer and attributes on its first call, and counts and remembers all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.calls, self.log, self.cache = torch.zeros(()), list[float](), {"by size": dict[int, Tensor]()}
        self.is_ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_ready:
            self.register_buffer("scale", x.abs().mean(0))
            self.register_buffer("shift", x.mean(0), persistent=False)
            self.plain, self.late, self.is_ready = torch.ones(5), nn.BatchNorm1d(5), True
        self.calls += 1
        self.log.append(float(self.calls))
        self.cache["by size"].setdefault(len(x), torch.ones(len(x), 1))
        return self.layer((x - self.shift) / self.scale * self.plain * self.cache["by size"][len(x)])


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x[:, :, None])[0][:, -1])


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(5, 6), dense(nn.Linear(6, 6)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inside, self.first(x), use_reentrant=False))


class ByHand(torch.autograd.Function):
    """Re-entrant checkpointing as it is written by hand: its backward pass adds to the parameters' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.autograd.backward(ctx.module(x), grad.detach())
        assert x.grad is not None
        return x.grad + 0 * grad.sum(), None


class Reentrant(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(ByHand.apply(self.first(x), self.inside))


class Random(nn.Module):
    """Draws from every generator, also in evaluation mode; what it draws makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(5, 3), nn.Dropout(0.5)
        self.own = {"python": random.Random(0), "numpy": np.random.default_rng(0), "older": np.random.RandomState(0)}
        self.generator, self.array, self.names = torch.Generator().manual_seed(0), np.zeros(1), Counter[str]()

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand(()) + random.random() + np.random.rand() + torch.rand((), generator=self.generator)
        drawn += sum(generator.random() for generator in self.own.values())
        self.array += drawn.item()
        self.names["calls"] += 1
        return self.dropout(self.layer(x)) + 0.0 * drawn


class Headed(nn.Module):
    """A tied weight, a transposed one and one with a stride of 0, next to a channels-last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 2).to(memory_format=torch.channels_last)
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(3, 5).t())
        self.wide = nn.Parameter(torch.ones(1).expand(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (0, 4)).view(-1, 1, 3, 3)).mean((2, 3))
        return torch.tanh(self.second(torch.tanh(self.first(x)))) @ self.turned * self.wide


def spectral_by_hooks() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return dense(nn.utils.spectral_norm(nn.Linear(5, 6)))


def hooked() -> nn.Module:
    """Hooks that change gradients, and optimizers that step in the backward pass."""
    model = dense()
    for p in model.parameters():
        optimizer = torch.optim.Adam([p], 0.1)
        p.register_hook(lambda grad: 2 * grad)
        p.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())  # type: ignore[misc]
    model[0].register_full_backward_pre_hook(lambda _, outputs: tuple(3 * g for g in outputs))
    model[2].register_full_backward_hook(lambda _, inputs, outputs: tuple(3 * g for g in inputs))
    return model


def compiled() -> nn.Module:
    model = dense()
    model.compile(backend="eager")
    return model


ZOO: dict[str, Callable[[], nn.Module]] = {
    "embedding with max_norm": lambda: words(nn.Embedding(20, 4, max_norm=1.0), 20),
    "embedding bag with max_norm": lambda: words(nn.EmbeddingBag(20, 6, max_norm=1.0), 6),
    "tied embedding with max_norm": TiedWords,
    "rows rescaled by hand": RenormalisedByHand,
    "spectral_norm by hooks": spectral_by_hooks,
    "spectral_norm": lambda: dense(parametrizations.spectral_norm(nn.Linear(5, 6))),
    "weight_norm": lambda: dense(parametrizations.weight_norm(nn.Linear(5, 6))),
    "batch norm without momentum": lambda: dense(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None))),
    "lazy buffers": Lazy,
    "lstm": Sequence,
    "checkpointing": Checkpointed,
    "re-entrant checkpointing": Reentrant,
    "all generators": Random,
    "hooks on gradients": hooked,
    "compiled": compiled,
    "in place on its input": lambda: nn.Sequential(nn.ELU(inplace=True), dense()),
    "odd memory": Headed,
}


def member(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A model in training mode with gradients, and its data in two batches."""
    torch.manual_seed(0)
    model = ZOO[name]()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    return model, [(x[:6], y[:6]), (x[6:], y[6:])]


def fingerprint(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> Fingerprint:
    """All bits of a model, of its sample and of the process; what should be the same object, by its address."""
    found: Fingerprint = {}
    for name, p in model.named_parameters():
        found[name] = id(p), _bits(p), p.requires_grad, p._version, id(p._backward_hooks), [*(p._backward_hooks or ())]
        found[f"{name}.grad"] = id(p.grad), None if p.grad is None else _bits(p.grad), p._post_accumulate_grad_hooks
    for name, module in model.named_modules():
        _look(found, f"{name}/", module.__dict__)
    found["data"] = [_bits(t) for batch in data for t in batch]
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    found["generators"] = (
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy["state"]["key"].tolist(),
        numpy["state"]["pos"],
    )
    found["torch"] = (
        torch.get_default_dtype(), torch.get_deterministic_debug_mode(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
    )  # fmt: skip
    return found


def _look(found: Fingerprint, path: str, holder: Any) -> None:
    found[path] = id(holder), [*holder] if isinstance(holder, dict) else len(holder)
    for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
        found[f"{path}{key}"] = id(value)
        if isinstance(value, torch.Generator):
            found[f"{path}{key}"] = id(value), value.get_state().tolist()
        elif isinstance(value, random.Random | np.random.Generator | np.random.RandomState | np.ndarray):
            found[f"{path}{key}"] = id(value), pickle.dumps(value)
        if isinstance(value, Tensor):
            found[f"{path}{key}"] = id(value), _bits(value)
        elif isinstance(value, dict | list | set):
            _look(found, f"{path}{key}/", value)


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    values = tensor.detach().contiguous().view(-1).numpy().tobytes()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, values
