"""Images augmented a second, whole batches at once, over torchvision's chains image by image, in the same process.

    python -m benchmarks.augmentation --rounds 7 --threads 1

Rounds of the two alternate. torchvision's chains work on PIL images, as the official experiments use them.
"""

import itertools
import statistics
import time
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from rich.progress import track
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from benchmarks.environment import environment
from tvlars_probe.data.augmentation import CropFlipRotate
from tvlars_probe.data.images import TensorImages
from tvlars_probe.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from tvlars_probe.data.views import TwinViews

if TYPE_CHECKING:
    from collections.abc import Callable

_FINISH = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


def chains() -> dict[str, list[v2.Compose]]:
    """What the official experiments do to images, in turns: for classification, and for the two views."""
    crop = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.RandomRotation(15), *_FINISH])
    views = [
        v2.Compose(
            [
                v2.RandomResizedCrop(32, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=blurred),
                v2.RandomSolarize(128, p=solarised),
                *_FINISH,
            ]
        )
        for blurred, solarised in ((1.0, 0.0), (0.1, 0.2))
    ]
    return {"crop, flip, rotation": [crop], "views of Barlow Twins": views}


def rate(work: "Callable[[], int]") -> float:
    """Images a second."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


@click.command()
@click.option("--batch-size", default=512, show_default=True)
@click.option("--batches", default=8, show_default=True, help="Batches of ours in a round.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default="the cores")
def main(batch_size: int, batches: int, rounds: int, threads: int) -> None:
    """Print images a second and the ratio."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(batch_size * batches, 3, 8, 8, generator=generator)
    raw = (torch.nn.functional.interpolate(small, size=32, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    images = TensorImages(raw, torch.zeros(len(raw), dtype=torch.int64), 255.0, IMAGENET_MEAN, IMAGENET_STD)
    pictures = [F.to_pil_image(image) for image in raw[:256]]
    order = np.random.default_rng(0).permutation(len(raw))
    augment, views = CropFlipRotate(seed=0), TwinViews(seed=0)

    def ours(name: str) -> int:
        for batch in np.split(order, batches):
            (augment if name.startswith("crop") else views)(images, batch, 1)
        return len(order) * (1 if name.startswith("crop") else 2)

    def theirs(name: str) -> int:
        for picture, chain in zip(pictures, itertools.cycle(chains_by_name[name]), strict=False):
            chain(picture)
        return len(pictures)

    chains_by_name = chains()
    print(environment())
    for name in chains_by_name:
        ours(name), theirs(name)
        pairs = [(rate(lambda n=name: ours(n)), rate(lambda n=name: theirs(n))) for _ in track(range(rounds), name)]  # type: ignore[misc]
        mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:24} {mine:10,.0f} img/s   torchvision, one by one {other:8,.0f} img/s   ratio {ratio:.0f}")


if __name__ == "__main__":
    main()
