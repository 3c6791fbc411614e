"""Barlow Twins (Zbontar, Jing, Misra, LeCun, Deny 2021, arXiv:2103.03230) and the linear probe of its features."""

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
        backbone: maps samples to features, shape (samples, features).
        features: number of features.
        widths: widths of the projector's layers.
    """

    def __init__(self, backbone: nn.Module, features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector(features, widths)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of two views of the same samples, each of shape (samples, widths[-1]).

        The views go through the model one after the other, so that BatchNorm normalises each by its own statistics.
        """
        return self.projector(self.backbone(first)), self.projector(self.backbone(second))


class LinearProbe(nn.Module):
    """A backbone and one linear layer on its features.

    Args:
        backbone: maps samples to features, shape (samples, features).
        features: number of features.
        num_classes: number of outputs.
        frozen: whether the backbone stays in evaluation mode and gets no gradient.
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
        if self.frozen:  # in training mode its running statistics would still move
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
    """Barlow Twins with a model of the registry, its head taken off, as backbone; every BatchNorm is synchronised."""
    # One class is the smallest head to make only for taking it off.
    backbone, features = without_head(config.build(channels=channels, num_classes=1))
    model = BarlowTwins(backbone, features, widths)
    initialize(model.projector, config.winit)
    synchronize_batch_norm(model)
    return model


def build_linear_probe(config: ModelConfig, *, channels: int, num_classes: int, frozen: bool) -> LinearProbe:
    """A linear classifier on a new backbone of the same form as that of `build_barlow_twins`."""
    backbone, features = without_head(config.build(channels=channels, num_classes=1))
    model = LinearProbe(backbone, features, num_classes, frozen=frozen)
    synchronize_batch_norm(model)
    return model


def barlow_twins_loss(first: Tensor, second: Tensor, lmbda: float) -> Tensor:
    """Σᵢ (1 − Cᵢᵢ)² + λ Σᵢ Σⱼ≠ᵢ Cᵢⱼ², with the cross-correlation C = Z₁ᵀZ₂/N of the global batch.

    Z₁ and Z₂ are the embeddings of the views, standardised over the N samples of all ranks.

    Args:
        first: this rank's embeddings of one view, shape (samples, features).
        second: this rank's embeddings of the other view, of the same shape.
        lmbda: λ, weight of the redundancy term.

    Returns:
        The loss over all ranks' samples, the same on every rank. It is differentiable through the sums over ranks; its
        gradient is the mean over ranks of the ranks' gradients.
    """
    # Ranks' shares may differ, and the last batch is smaller: N is counted, not taken from the batch size.
    samples = torch.full((), first.shape[0], dtype=first.dtype, device=first.device)
    correlation = sum_over_ranks(standardized(first).T @ standardized(second)) / sum_over_ranks(samples)
    squares = correlation.square()
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum() + lmbda * (squares.sum() - diagonal.square().sum())
