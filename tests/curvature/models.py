"""Networks small enough for a dense Hessian."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class ResidualBlock(nn.Module):
    """A stem, one residual block with BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.stem(x)))
        x = F.gelu(x + self.norm2(self.conv(x)))
        return self.fc(x.mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(12, 4))


NETWORKS = {"mlp": mlp, "cnn with batch norm": cnn, "residual block": ResidualBlock}


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network after some steps of training, so that its running statistics aren't the initial ones."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype)
    x, y = sample(dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def sample(count: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 4, 4, generator=generator, dtype=dtype), torch.arange(count) % 4


def chunked(x: Tensor, y: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))
