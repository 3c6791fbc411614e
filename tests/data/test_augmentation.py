"""Augmentation against torchvision's: exactly, given the same draw, and in distribution."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from tvlars_probe.data.augmentation import CropFlipRotate, Unchanged, augmentation, move_pixels, padding_of
from tvlars_probe.data.draws import uniforms
from tvlars_probe.data.images import TensorImages
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.data.views import TwinViews, ViewDraw, render


def photographs(count: int = 64, side: int = 32, channels: int = 3) -> TensorImages:
    small = torch.rand(count, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(small, size=side, mode="bicubic").clamp(0, 1)
    labels = torch.arange(count) % 10
    return TensorImages((smooth * 255).to(torch.uint8), labels, 255.0, (0.5,) * channels, (0.25,) * channels)


def test_draws_are_uniform_and_independent() -> None:
    u = uniforms(np.arange(20_000), 6, seed=3, epoch=7)
    assert all(stats.kstest(column, "uniform").pvalue > 1e-4 for column in u.T)
    assert np.abs(np.corrcoef(u.T) - np.eye(6)).max() < 0.04
    others = [uniforms(np.arange(20_000), 1, seed=s, epoch=e, view=v)[:, 0] for s, e, v in
              ((3, 7, 0), (4, 7, 0), (3, 8, 0), (3, 7, 1))]  # fmt: skip
    assert np.abs(np.corrcoef(others) - np.eye(4)).max() < 0.04
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.04


@pytest.mark.parametrize("kind", ["classification", "views"])
def test_a_sample_looks_the_same_in_whatever_batch_it_stands(kind: str) -> None:
    images = photographs()
    make = CropFlipRotate(seed=5) if kind == "classification" else TwinViews(seed=5)
    order = np.random.default_rng(0).permutation(64)
    whole = make(images, order, 2)[0]
    for part in np.array_split(np.arange(64), 7):
        assert torch.equal(make(images, order[part], 2)[0], whole[part])
    assert not torch.equal(make(images, order, 3)[0], whole)
    assert not torch.equal(replace(make, seed=6)(images, order, 2)[0], whole)


def test_views_differ_from_one_another() -> None:
    first, second = TwinViews(seed=0)(photographs(), np.arange(64), 0)
    assert (first - second).abs().flatten(1).amax(1).min() > 0.1


@pytest.mark.parametrize("side", [32, 64, 28])
def test_pixels_are_moved_as_torchvision_moves_them(side: int) -> None:
    images = photographs(side=side).images
    draw = CropFlipRotate(seed=0).draw(np.arange(64), 0, padding=padding_of(side, side))
    moved = move_pixels(images, draw)
    for i in range(64):
        expected = F.crop(F.pad(images[i], [4] * 4), 4 + int(draw.top[i]), 4 + int(draw.left[i]), side, side)
        expected = F.horizontal_flip(expected) if draw.flipped[i] else expected
        expected = F.rotate(expected, math.degrees(float(draw.angle[i])), fill=[0.0])
        # A source half-way between two pixels may be rounded either way.
        assert (moved[i] != expected).any(0).float().mean() < 0.002


def test_placements_are_distributed_as_torchvisions() -> None:
    draw = CropFlipRotate(seed=1).draw(np.arange(20_000), 0, padding=4)
    for shift in (draw.top, draw.left):
        counts = torch.bincount(shift + 4, minlength=9).numpy()
        assert len(counts) == 9
        assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.binomtest(int(draw.flipped.sum()), 20_000, 0.5).pvalue > 1e-4
    degrees = np.degrees(draw.angle.numpy())
    assert stats.kstest(degrees, "uniform", args=(-15, 30)).pvalue > 1e-4


def test_augmented_images_have_torchvisions_moments() -> None:
    """Mean of every pixel over 4,000 draws of one image each way, within the sampling error."""
    images, n = photographs(1), 4000
    many = TensorImages(images.images.expand(n, -1, -1, -1), torch.zeros(n, dtype=torch.int64), 255.0, (0.0,) * 3,
                        (1.0,) * 3)  # fmt: skip
    ours = CropFlipRotate(seed=2)(many, np.arange(n), 0)[0][:, 0]
    theirs = torch.empty_like(ours)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        chain = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15)])
        for i in range(n):
            theirs[i] = chain(images.images[0])[0] / 255
    error = ((ours.var(0) + theirs.var(0)) / n).sqrt().clamp(min=1e-6)
    z = (ours.mean(0) - theirs.mean(0)) / error
    assert z.abs().max() < 5
    assert z.square().mean() < 1.5


def by_torchvision(image: torch.Tensor, draw: ViewDraw, i: int) -> torch.Tensor:
    side = list(image.shape[1:])
    top, left, height, width = (int(v) for v in draw.crop[i])
    x = F.resized_crop(image, top, left, height, width, side, v2.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    x = F.horizontal_flip(x) if draw.flipped[i] else x
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for k in draw.order[i] if draw.jittered[i] else ():
        x = operations[k](x, float(draw.factors[i, k]))
    x = F.rgb_to_grayscale(x, image.shape[0]) if draw.grey[i] else x
    if draw.sigma[i] > 0:
        x = F.gaussian_blur(x, [13, 13], [float(draw.sigma[i])] * 2)
    return F.solarize(x, 0.5) if draw.solarised[i] else x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [0, 1])
def test_views_are_torchvisions_given_the_same_draw(view: int, channels: int) -> None:
    images = photographs(channels=channels).images.double() / 255
    draw = TwinViews(seed=4).draw(np.arange(64), 1, view, side=(32, 32))
    ours = render(images.clone(), draw)
    for i in range(64):
        difference = (ours[i] - by_torchvision(images[i], draw, i)).abs()
        # A value at the threshold of solarisation may fall on either side of it.
        assert (difference > 1e-5).double().mean() < (0.01 if draw.solarised[i] else 1e-12)


def test_views_are_drawn_with_the_papers_probabilities() -> None:
    n = 20_000
    for view, blurred, solarised in ((0, 1.0, 0.0), (1, 0.1, 0.2)):
        draw = TwinViews(seed=0).draw(np.arange(n), 0, view, side=(32, 32))
        shares = {"flipped": 0.5, "jittered": 0.8, "grey": 0.2, "solarised": solarised}
        for name, p in shares.items():
            assert stats.binomtest(int(getattr(draw, name).sum()), n, p).pvalue > 1e-4, name
        assert stats.binomtest(int((draw.sigma > 0).sum()), n, blurred).pvalue > 1e-4
        sigma = draw.sigma[draw.sigma > 0]
        assert stats.kstest(sigma, "uniform", args=(0.1, 1.9)).pvalue > 1e-4
        assert stats.kstest(draw.factors[:, 0], "uniform", args=(0.6, 0.8)).pvalue > 1e-4
        assert stats.kstest(draw.factors[:, 3], "uniform", args=(-0.1, 0.2)).pvalue > 1e-4
        assert (np.sort(draw.order, axis=1) == np.arange(4)).all()
        assert len(np.unique(draw.order, axis=0)) == 24


def test_crops_are_distributed_as_torchvisions() -> None:
    n = 4000
    ours = TwinViews(seed=0).draw(np.arange(n), 0, 0, side=(32, 32)).crop
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop, image = v2.RandomResizedCrop(32), torch.zeros(3, 32, 32)
        drawn = [crop.make_params([image]) for _ in range(n)]
    theirs = np.array([[d[k] for k in ("top", "left", "height", "width")] for d in drawn])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    areas = ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]
    assert stats.ks_2samp(*areas).pvalue > 1e-4


def test_images_of_a_forbidden_aspect_are_still_cropped() -> None:
    crops = TwinViews(seed=0).draw(np.arange(200), 0, 0, side=(64, 8)).crop
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, 0] + crops[:, 2] <= 64).all()
    assert (crops[:, 1] + crops[:, 3] <= 8).all()


def test_the_data_set_decides_unless_asked() -> None:
    assert augmentation(DataConfig(name="cifar10"), 1) == CropFlipRotate(seed=1)
    assert augmentation(DataConfig(name="cifar10", augmentation="none"), 1) == Unchanged()
    assert augmentation(DataConfig(), 1) == Unchanged()
    assert augmentation(DataConfig(augmentation="standard"), 1) == CropFlipRotate(seed=1, flips=False)


def test_digits_are_never_mirrored() -> None:
    draw = TwinViews(seed=0, flips=DataConfig().flips).draw(np.arange(500), 0, 0, side=(8, 8))
    assert not draw.flipped.any()


def test_an_empty_share_gives_empty_batches() -> None:
    nothing = np.arange(0)
    assert CropFlipRotate(seed=0)(photographs(), nothing, 0)[0].shape == (0, 3, 32, 32)
    assert TwinViews(seed=0)(photographs(), nothing, 0)[1].shape == (0, 3, 32, 32)
