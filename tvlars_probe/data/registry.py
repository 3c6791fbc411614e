"""Data sets by name. A new one is one entry in `DATASETS`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tvlars_probe.errors import DataError, UserError, unknown

if TYPE_CHECKING:
    from tvlars_probe.data.images import ImageData


class Loader(Protocol):
    """Reads a data set from a folder (its usual places by default), downloading it if allowed and needed."""

    def __call__(self, folder: Path | None = None, download: bool = False) -> ImageData: ...


def _digits(folder: Path | None = None, download: bool = False) -> ImageData:
    from tvlars_probe.data.digits import load

    return load(folder, download)


def _fashion_mnist(folder: Path | None = None, download: bool = False) -> ImageData:
    from tvlars_probe.data.fashion_mnist import load

    return load(folder, download)


DATASETS: dict[str, Loader] = {"digits": _digits, "fashion-mnist": _fashion_mnist}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data as chosen by a user.

    Attributes:
        name: one of `DATASETS`.
        folder: where it is, if not in its usual places.
        download: whether it may be downloaded.
        val: fraction of the training data to hold out, 0 <= val < 1; the same samples for every seed.
        limit: use only so many training and test samples, drawn once for all seeds (for trying things out).
    """

    name: str = "digits"
    folder: str | None = None
    download: bool = False
    val: float = 0.0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise unknown("data set", self.name, DATASETS)
        if not 0 <= self.val < 1:
            raise UserError(f"--val {self.val:g} is not a share of the training data (allowed: 0 <= val < 1)")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit {self.limit} leaves no samples (allowed: 1 or more)")

    def load(self) -> ImageData:
        """Read the data and hold out what is to be held out.

        Raises:
            DataError: it is missing or damaged, or holding out leaves a part empty.
        """
        data = DATASETS[self.name](Path(self.folder) if self.folder else None, self.download)
        if self.limit is not None:
            train, test = (part.subset(_spread(len(part), self.limit)) for part in (data.train, data.test))
            data = replace(data, train=train, test=test)
        return _hold_out(data, self.val) if self.val else data


def _spread(size: int, wanted: int) -> list[int]:
    import numpy as np

    chosen = np.random.default_rng(0).permutation(size)[:wanted]
    return sorted(chosen.tolist())


def _hold_out(data: ImageData, share: float) -> ImageData:
    """Hold out ``share`` of each class, and at least one sample altogether."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            range(len(data.train)), test_size=share, random_state=0, stratify=data.train.labels.numpy()
        )
    except ValueError as error:
        raise DataError(f"--val {share:g} can't be held out of {len(data.train)} training samples: {error}") from None
    return replace(data, train=data.train.subset(sorted(kept)), val=data.train.subset(sorted(held)))
