"""Image classifiers by name. A new one is one entry in `MODELS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

Stem = Literal["imagenet", "cifar"]
STEMS: tuple[str, ...] = get_args(Stem)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model as chosen by a user.

    Attributes:
        name: one of `MODELS`.
        stem: first layers of a ResNet: "imagenet" is the 7×7 convolution with stride 2 and pooling, which the
            official experiments use at any image size; "cifar" a 3×3 convolution that keeps the resolution.
    """

    name: str = "cnn"
    stem: str = "imagenet"

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise unknown("model", self.name, MODELS)
        if self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        if self.stem == "cifar" and not self.name.startswith("resnet"):
            raise UserError(f"--stem cifar is for ResNets; --model {self.name} has no such stem")

    def build(self, *, channels: int, num_classes: int) -> nn.Module:
        """The model with fresh weights, drawn from torch's global generator."""
        return MODELS[self.name](channels, num_classes, self)


def _cnn(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    """Three 3×3 convolutions, 16-32-64 wide, the last two with stride 2: 26,000 weights.

    Without normalisation, so that nothing in it depends on how a batch is cut; and without biases but the last, which
    LARS would give the full rate.
    """
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, num_classes),
    )


def _resnet18(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    from torchvision.models import resnet18

    return _with_stem(resnet18(num_classes=num_classes), channels, config)


def _with_stem(net: nn.Module, channels: int, config: ModelConfig) -> nn.Module:
    """Give a torchvision ResNet the stem asked for, initialised as torchvision does."""
    from torch import nn

    if config.stem == "imagenet" and channels == 3:
        return net
    if config.stem == "imagenet":
        stem = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        stem = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = stem
    return net


MODELS: dict[str, Callable[[int, int, ModelConfig], nn.Module]] = {"cnn": _cnn, "resnet18": _resnet18}
