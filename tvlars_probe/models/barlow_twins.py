"""Barlow Twins (Zbontar, Jing, Misra, LeCun, Deny 2021, arXiv:2103.03230) and the linear probe of what it learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvlars_probe.collectives import sum_over_ranks
from tvlars_probe.models.backbones import ModelConfig, without_head
from tvlars_probe.models.batch_norm import standardized, synchronize_batch_norm
from tvlars_probe.models.initialization import initialize


class BarlowTwins(nn.Module):
    """A backbone and the projector above it.

    Args:
        backbone: gives (samples, features).
        features: its width.
        widths: of the projector's layers.
    """

    def __init__(self, backbone: nn.Module, features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector(features, widths)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (samples, widths[-1]) of two views of the same samples, each view with its own statistics."""
        return self.projector(self.backbone(first)), self.projector(self.backbone(second))


class LinearProbe(nn.Module):
    """A backbone and one linear layer on its features.

    Args:
        backbone: gives (samples, features).
        features: its width.
        num_classes: outputs.
        frozen: the backbone isn't trained: it stays in evaluation mode and no gradient reaches it.
    """

    def __init__(self, backbone: nn.Module, features: int, num_classes: int, *, frozen: bool = True) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        self.head = nn.Linear(features, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        for p in backbone.parameters():
            p.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> LinearProbe:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (samples, num_classes)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def projector(features: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers without bias, with BatchNorm and ReLU between them."""
    layers: list[nn.Module] = []
    before = features
    for width in widths[:-1]:
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, widths[-1], bias=False))


def build_barlow_twins(config: ModelConfig, *, channels: int, widths: tuple[int, ...]) -> BarlowTwins:
    """Any model of the registry as backbone, its head taken off; every BatchNorm is synchronised."""
    backbone, features = without_head(config.build(channels=channels, num_classes=1))
    model = BarlowTwins(backbone, features, widths)
    initialize(model.projector, config.winit)
    synchronize_batch_norm(model)
    return model


def build_linear_probe(config: ModelConfig, *, channels: int, num_classes: int, frozen: bool) -> LinearProbe:
    """The same backbone under a linear classifier."""
    backbone, features = without_head(config.build(channels=channels, num_classes=1))
    model = LinearProbe(backbone, features, num_classes, frozen=frozen)
    synchronize_batch_norm(model)
    return model


def barlow_twins_loss(first: Tensor, second: Tensor, lmbda: float) -> Tensor:
    """Σᵢ (1 − Cᵢᵢ)² + λ Σᵢ Σⱼ≠ᵢ Cᵢⱼ², C = Z₁ᵀZ₂/N the cross-correlation of the global batch.

    Args:
        first: this rank's embeddings (samples, features) of one view.
        second: those of the other.
        lmbda: λ, weight of the redundancy term.

    Returns:
        The loss over all ranks' samples, the same on every rank; Z are the embeddings standardised over all N of them.
        Differentiable through the sums over ranks: the mean over ranks of the gradients is its gradient.
    """
    samples = torch.full((), first.shape[0], dtype=first.dtype, device=first.device)
    correlation = sum_over_ranks(standardized(first).T @ standardized(second)) / sum_over_ranks(samples)
    squares = correlation.square()
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum() + lmbda * (squares.sum() - diagonal.square().sum())
