from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.errors import UserError
from tvlars_probe.models.backbones import MODELS, ModelConfig
from tvlars_probe.models.resnet20 import ResidualBlock

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.mark.parametrize(
    ("name", "channels", "classes", "count"),
    [
        ("cnn", 1, 10, 25_754),
        # A weight and a bias for each of 16 + 32 + 64 channels.
        ("cnn-bn", 1, 10, 25_754 + 2 * 112),
        ("cnn-bn", 3, 10, 25_754 + 2 * 112 + 2 * 16 * 9),
        ("mlp", 1, 10, 65 * 128 + 2 * 129 * 128 + 1290),
        ("resnet20", 3, 10, 269_722),
        ("resnet20", 1, 10, 269_722 - 2 * 16 * 9),
    ],
)
def test_parameters_are_as_many_as_counted_by_hand(name: str, channels: int, classes: int, count: int) -> None:
    model = ModelConfig(name=name).build(channels=channels, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 10), (3, 32, 100), (3, 64, 200), (3, 5, 2)])
@pytest.mark.parametrize("name", ["cnn", "cnn-bn", "mlp", "resnet20"])
def test_small_models_take_the_images_of_every_data_set(name: str, channels: int, size: int, classes: int) -> None:
    model = ModelConfig(name=name).build(channels=channels, num_classes=classes)
    assert model(torch.randn(2, channels, size, size)).shape == (2, classes)


def test_cnn_bn_is_the_cnn_with_batch_norm_between_each_convolution_and_its_relu() -> None:
    plain, normed = (ModelConfig(name=name).build(channels=1, num_classes=10) for name in ("cnn", "cnn-bn"))
    kinds = [type(layer) for layer in normed.children()]
    assert [kind for kind in kinds if kind is not nn.BatchNorm2d] == [type(layer) for layer in plain.children()]
    after = [kinds[place + 1 : place + 3] for place, kind in enumerate(kinds) if kind is nn.Conv2d]
    assert after == [[nn.BatchNorm2d, nn.ReLU]] * 3


def test_resnet20_has_twenty_layers_and_the_papers_feature_maps() -> None:
    model = ModelConfig(name="resnet20").build(channels=3, num_classes=10).eval()
    weights = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == 20
    shapes = []
    for name in ("layer1", "layer2", "layer3"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    # Table of section 4.2: output maps of 32×32, 16×16 and 8×8 with 16, 32 and 64 filters.
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros() -> None:
    block = ResidualBlock(2, 3, 2).eval()
    nn.init.zeros_(block.conv2.weight)  # the block is its shortcut
    x = torch.randn(4, 2, 5, 5)
    y = block(x)
    # The same by a convolution: a 1×1 kernel that copies the old channels, with stride 2.
    by_kernel = torch.relu(nn.functional.conv2d(x, torch.eye(3, 2)[:, :, None, None], stride=2))
    assert torch.equal(y, by_kernel)
    assert torch.equal(y[:, :2], torch.relu(x[:, :, ::2, ::2]))


@pytest.mark.parametrize("name", ["cnn-bn", "resnet20"])
def test_one_recorded_step_moves_every_tensor_and_the_hessian_is_measured(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ModelConfig(name=name).build(channels=1, num_classes=10)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = tvlars_probe.LARS(model.parameters(), lr=1.0)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    probe = tvlars_probe.SharpnessProbe(model, nn.functional.cross_entropy, (images, labels), every=1, tol=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe]) as rec:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        rec.log(loss=loss, samples=16)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert set(run.layers()["parameter"]) == set(before)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    measured = run.curvature()
    assert measured["value"].notna().all()
    assert len(measured)


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
        ({"name": "cnn", "stem": "cifar"}, "--stem cifar is for resnet18, resnet34, resnet50; --model cnn has its own"),
        ({"name": "resnet20", "stem": "cifar"}, "--model resnet20 has its own stem: leave it out"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**settings)


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    models = []
    for last in (False, True):
        torch.manual_seed(0)
        models.append(ModelConfig(name="cnn-bn", channels_last=last).build(channels=3, num_classes=10))
    plain, last = models
    images = torch.randn(4, 3, 16, 16)
    convolved = last[0](images)
    assert convolved.is_contiguous(memory_format=torch.channels_last)
    assert not convolved.is_contiguous()
    torch.testing.assert_close(last(images), plain(images))
    assert ModelConfig().as_dict() == {"name": "cnn", "stem": "imagenet"}
    assert ModelConfig(channels_last=True).as_dict()["channels_last"] is True
