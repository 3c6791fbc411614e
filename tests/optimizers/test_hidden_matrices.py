from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tvlars_probe.errors import UserError
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.models.barlow_twins import build_barlow_twins
from tvlars_probe.optimizers.hidden_matrices import hidden_matrices

if TYPE_CHECKING:
    from torch import nn


def taken(model: nn.Module) -> list[str]:
    """The names of the parameters that Muon is given; the others are all others."""
    names = {id(p): name for name, p in model.named_parameters()}
    chosen, left = hidden_matrices(model.parameters())
    assert sorted(names[id(p)] for p in (*chosen, *left)) == sorted(names.values())
    return [names[id(p)] for p in chosen]


def test_of_an_mlp_it_takes_all_matrices_but_the_first_and_the_last() -> None:
    assert taken(ModelConfig(name="mlp").build(channels=1, num_classes=10)) == ["4.weight", "6.weight"]


def test_of_barlow_twins_it_takes_the_projectors_hidden_layers() -> None:
    model = build_barlow_twins(ModelConfig(name="cnn"), channels=1, widths=(8, 8, 8))
    assert taken(model) == ["projector.0.weight", "projector.3.weight"]


@pytest.mark.parametrize("name", ["cnn", "resnet18", "effb0"])
def test_a_model_without_any_is_refused_with_what_helps(name: str) -> None:
    with pytest.raises(UserError, match=r"this model has none \(a convolution's kernel .*use --model mlp or --mode bt"):
        taken(ModelConfig(name=name).build(channels=1, num_classes=10))
