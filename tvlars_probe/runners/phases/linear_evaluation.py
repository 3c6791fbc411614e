"""Linear evaluation of a pretrained backbone: training a linear classifier on its features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tvlars_probe.data.batches import BatchPlan
from tvlars_probe.models.barlow_twins import LinearProbe, build_linear_probe
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.phases.classification import Classification
from tvlars_probe.runners.phases.phase import FollowingPhase

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from tvlars_probe.data.images import ImageData

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-6
"""Settings of the SGD that trains the classifier, as in Barlow Twins' own evaluation."""


class LinearEvaluation(Classification, FollowingPhase):
    """A linear classifier on the pretrained backbone, by SGD with momentum. The learning rate falls as a cosine."""

    batch_option: ClassVar[str] = "--probe-batch-size"

    @property
    def schedule(self) -> ScheduleConfig:
        return ScheduleConfig(name="cosine")

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone isn't trained."""
        return self.config.barlow.lr_backbone == 0

    def plan(self, samples: int, *, rank: int = 0, world_size: int = 1) -> BatchPlan:
        return BatchPlan(
            samples=samples,
            batch_size=min(self.config.barlow.probe_batch_size, samples),
            rank=rank,
            world_size=world_size,
            seed=self.config.seed,
            in_step=not self.is_frozen,  # a trained backbone's BatchNorm sums over the ranks
        )

    def build_model(self, data: ImageData) -> nn.Module:
        config, channels, classes = self.config, data.channels, data.num_classes
        return build_linear_probe(config.model, channels=channels, num_classes=classes, frozen=self.is_frozen)

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        assert isinstance(model, LinearProbe)
        # The classifier comes first: the manifest and the progress show the first group's learning rate.
        groups: list[dict[str, Any]] = [
            {"params": list(model.head.parameters()), "lr": self.config.barlow.lr_classifier}
        ]
        if not model.frozen:
            groups.append({"params": list(model.backbone.parameters()), "lr": self.config.barlow.lr_backbone})
        return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    @torch.no_grad()
    def take_over(self, model: nn.Module, trained: nn.Module) -> None:
        """Copy the weights and BatchNorm statistics of the backbone."""
        model.get_submodule("backbone").load_state_dict(trained.get_submodule("backbone").state_dict())

    def probe_bn_mode(self, asked: str) -> str:
        """With a frozen backbone "eval", the mode in which it trains; otherwise the mode asked for."""
        return "eval" if self.is_frozen else asked
