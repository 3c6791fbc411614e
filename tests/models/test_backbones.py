from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tvlars_probe.errors import UserError
from tvlars_probe.models.backbones import MODELS, ModelConfig


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_each_classifies_small_images(name: str, channels: int) -> None:
    model = ModelConfig(name=name).build(channels=channels, num_classes=7)
    assert model(torch.randn(4, channels, 8, 8)).shape == (4, 7)


def test_resnet18_is_torchvisions() -> None:
    model = ModelConfig(name="resnet18").build(channels=3, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 11_181_642
    assert isinstance(model.maxpool, nn.MaxPool2d)


def test_the_cifar_stem_keeps_the_resolution() -> None:
    model = ModelConfig(name="resnet18", stem="cifar").build(channels=3, num_classes=10)
    assert model.conv1.kernel_size == (3, 3)  # type: ignore[union-attr]
    x = model.maxpool(model.conv1(torch.randn(1, 3, 32, 32)))  # type: ignore[operator]
    assert x.shape == (1, 64, 32, 32)


def test_the_cnn_has_nothing_that_depends_on_the_batch() -> None:
    model = ModelConfig(name="cnn").build(channels=1, num_classes=10)
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules())


def test_weights_are_drawn_from_the_global_generator() -> None:
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(ModelConfig(name="resnet18").build(channels=1, num_classes=10))
    assert all(torch.equal(a, b) for a, b in zip(built[0].parameters(), built[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vgg"}, r"unknown model 'vgg' \(known: cnn, resnet18"),
        ({"stem": "vit"}, r"unknown stem 'vit' \(known: imagenet, cifar\)"),
        ({"name": "cnn", "stem": "cifar"}, "--stem cifar is for ResNets"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**settings)
