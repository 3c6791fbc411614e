from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tvlars_probe.errors import UserError
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.models.initialization import INITIALIZATIONS


@pytest.mark.parametrize("name", [n for n in INITIALIZATIONS if n != "default"])
def test_weights_have_the_deviation_that_the_name_promises(name: str) -> None:
    torch.manual_seed(0)
    model = ModelConfig(name="resnet18", winit=name).build(channels=3, num_classes=10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 21
    for layer in layers:
        fan_out, fan_in = layer.weight.shape[0], layer.weight[0].numel()
        receptive = layer.weight[0, 0].numel()
        wide = fan_in + fan_out * receptive if name.startswith("xavier") else fan_in
        deviation = math.sqrt(2 / wide)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.08)
        bound = deviation * math.sqrt(3)
        assert (layer.weight.abs().max() <= bound).item() is name.endswith("uniform")


def test_norms_and_biases_keep_what_they_have() -> None:
    model = ModelConfig(name="resnet18", winit="xavier_normal").build(channels=3, num_classes=10)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(m.weight, torch.ones_like(m.weight)) for m in norms)


def test_the_default_is_the_layers_own() -> None:
    built = []
    for winit in ("default", "default", "kaiming_normal"):
        torch.manual_seed(1)
        built.append(ModelConfig(winit=winit).build(channels=1, num_classes=2)[0].weight)  # type: ignore[index]
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown --winit 'orthogonal' \(known: default, xavier_uniform"):
        ModelConfig(winit="orthogonal")
