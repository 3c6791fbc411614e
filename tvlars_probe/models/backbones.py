"""Image classifiers by name. A new one is one entry in `MODELS`.

torch and torchvision are imported inside functions: the command line reads the names and the settings without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tvlars_probe.errors import UserError, unknown
from tvlars_probe.models.initialization import INITIALIZATIONS, initialize

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

Stem = Literal["imagenet", "cifar"]
STEMS: tuple[str, ...] = get_args(Stem)
STEMMED = ("resnet18", "resnet34", "resnet50")
"""Models that have the stem as a choice: torchvision's ResNets."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model as chosen by a user.

    Attributes:
        name: one of `MODELS`.
        stem: first layers of torchvision's ResNets. "imagenet" is a 7×7 convolution with stride 2, and pooling; the
            official experiments use it at any image size. "cifar" is a 3×3 convolution that keeps the resolution.
        winit: how convolutions and linear layers are initialised; one of `INITIALIZATIONS`.
        channels_last: whether images and the weights of convolutions lie in memory with their channels side by side,
            which is faster on many processors and rounds otherwise.

    Raises:
        UserError: an unknown name, or a stem that the model doesn't have.
    """

    name: str = "cnn"
    stem: str = "imagenet"
    winit: str = "default"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise unknown("model", self.name, MODELS)
        if self.stem not in STEMS:
            raise unknown("stem", self.stem, STEMS)
        if self.stem == "cifar" and self.name not in STEMMED:
            known = ", ".join(STEMMED)
            raise UserError(f"--stem cifar is for {known}; --model {self.name} has its own stem: leave it out")
        if self.winit not in INITIALIZATIONS:
            raise unknown("--winit", self.winit, INITIALIZATIONS)

    def build(self, *, channels: int, num_classes: int) -> nn.Module:
        """The model with fresh weights, drawn from torch's global generator."""
        model = MODELS[self.name](channels, num_classes, self)
        initialize(model, self.winit)
        if self.channels_last:
            import torch

            # Convolutions give images on as their weights lie.
            model.to(memory_format=torch.channels_last)
        return model

    def as_dict(self) -> dict[str, Any]:
        """The settings that change a run's numbers."""
        # Defaults of later settings are left out: configurations from before them keep their hash.
        chosen: dict[str, Any] = {"name": self.name, "stem": self.stem}
        if self.winit != "default":
            chosen["winit"] = self.winit
        if self.channels_last:
            chosen["channels_last"] = True
        return chosen


def without_head(model: nn.Module) -> tuple[nn.Module, int]:
    """Take the last linear layer off a classifier, in place.

    Returns:
        the model, and the number of features that it now gives.
    """
    from torch import nn

    name, head = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Identity())
    return model, head.in_features


def _cnn(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    """Three 3×3 convolutions, 16, 32 and 64 channels wide, the last two with stride 2: 26,000 weights.

    It has no normalisation, so nothing depends on how a batch is cut. Only the last layer has a bias, because LARS
    gives biases the full learning rate.
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


def _cnn_bn(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    """The cnn with BatchNorm after each convolution, before its ReLU: 224 more weights."""
    from torch import nn

    layers: list[nn.Module] = []
    for layer in _cnn(channels, num_classes, config).children():
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers)


def _mlp(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    """Three hidden layers of 128 on the image averaged down to 8×8: 43,000 weights for digits, no normalisation."""
    from torch import nn

    return nn.Sequential(
        nn.AdaptiveAvgPool2d(8),
        nn.Flatten(),
        nn.Linear(64 * channels, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def _resnet20(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    from tvlars_probe.models.resnet20 import ResNet20

    return ResNet20(channels, num_classes)


def _resnet(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    from torchvision import models

    return _with_stem(getattr(models, config.name)(num_classes=num_classes), channels, config)


def _with_stem(net: nn.Module, channels: int, config: ModelConfig) -> nn.Module:
    """Give a torchvision ResNet the stem asked for, initialised as torchvision initialises its own."""
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


def _effb0(channels: int, num_classes: int, config: ModelConfig) -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019), with torchvision's dropout and stochastic depth."""
    from torch import nn
    from torchvision.models import efficientnet_b0

    net: nn.Module = efficientnet_b0(num_classes=num_classes)
    if channels != 3:
        stem = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")
        net.get_submodule("features.0")[0] = stem  # type: ignore[operator]
    return net


MODELS: dict[str, Callable[[int, int, ModelConfig], nn.Module]] = {
    "cnn": _cnn,
    "resnet18": _resnet,
    "resnet34": _resnet,
    "resnet50": _resnet,
    "effb0": _effb0,
    "mlp": _mlp,
    "cnn-bn": _cnn_bn,
    "resnet20": _resnet20,
}
