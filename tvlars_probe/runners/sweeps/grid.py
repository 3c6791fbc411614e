"""A grid of training runs: options that all runs share, and options whose values are combined, each with each.

As a TOML file::

    [settings]              # as on the command line of `tvlars-probe train`
    ds = "cifar10"
    bs = 512

    [grid]
    opt = ["lars", "tvlars"]
    lr = [1.0, 2.0, 3.0]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission import limits
from tvlars_probe.admission.files import read_plain
from tvlars_probe.admission.texts import parse_toml
from tvlars_probe.errors import RefusedFileError, UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SHIPPED = Path(__file__).parents[2] / "grids"
"""Folder of the grids that come with the package, those of the official experiments."""

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid as chosen by a user.

    Attributes:
        settings: options that all runs share: their words on a command line, by the option's name without dashes.
        axes: options that vary: their values, by the option's name without dashes.

    Raises:
        UserError: an axis has no value, an option is both shared and varied, or the points are too many.
    """

    settings: Mapping[str, Words] = field(default_factory=dict)
    axes: Mapping[str, Words] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            if not values:
                raise UserError(f"the grid's {name} has no value: give one or more")
        for name in {*self.settings} & {*self.axes}:
            raise UserError(f"{name} stands in both [settings] and [grid]: keep one")
        points = math.prod(map(len, self.axes.values()))
        if points > limits.GRID_POINTS:
            sizes = ", ".join(f"{len(values)} of {name}" for name, values in self.axes.items())
            raise UserError(f"the grid has {points:,} points ({sizes}), of {limits.GRID_POINTS:,} that it can have")

    def __or__(self, other: Grid) -> Grid:
        """This grid, in which the options of ``other`` replace those of the same name."""
        taken = {*other.settings, *other.axes}
        settings, axes = (
            {name: words for name, words in mine.items() if name not in taken} for mine in (self.settings, self.axes)
        )
        return Grid(settings={**settings, **other.settings}, axes={**axes, **other.axes})

    def points(self) -> Iterator[dict[str, str]]:
        """Every combination of the axes' values, by option; the last axis varies fastest."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))

    def command_line(self, point: Mapping[str, str]) -> list[str]:
        """The words of `tvlars-probe train` for a point of the grid."""
        words: list[str] = []
        for name, values in {**self.settings, **{name: (value,) for name, value in point.items()}}.items():
            words += [f"--{name}", *values]
        return words


def read_grid(name: str) -> Grid:
    """Read a grid from a TOML file, or by its name one that comes with the package.

    Raises:
        UserError: there is no such file or name, or what it holds isn't a grid.
    """
    path = Path(name)
    if not path.exists() or path.is_dir():
        path = SHIPPED / f"{name}.toml"
    if not path.exists():
        known = sorted(p.stem for p in SHIPPED.glob("*.toml"))
        told = nearest(name, [*known, *(str(p) for p in Path(name).parent.glob("*.toml"))])
        shipped = ", ".join(known)
        raise UserError(f"there is no grid {name}: give a TOML file, or one of {shipped}{told and f'. {told}'}")
    try:
        content = parse_toml(read_plain(path, limits.GRID_BYTES), path)
    except RefusedFileError:  # a ValueError, too, which has said what is wrong
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None
    strange = sorted({*content} - {"settings", "grid"})
    if strange or not all(isinstance(part, dict) for part in content.values()):
        raise UserError(f"{path} has {', '.join(strange) or 'no tables'}: a grid has the tables [settings] and [grid]")
    try:
        settings = {key: _words(value) for key, value in content.get("settings", {}).items()}
        axes = {
            key: _words(value if isinstance(value, list) else [value]) for key, value in content.get("grid", {}).items()
        }
    except ValueError:
        raise UserError(f"{path} holds an integer of thousands of digits") from None
    return Grid(
        settings={key: words for key, words in settings.items() if words is not None},
        axes={key: words for key, words in axes.items() if words is not None},
    )


def _words(value: Any) -> Words | None:
    """A TOML value as words of a command line: none for true, which is a flag; None for false, which leaves it out."""
    if isinstance(value, bool):
        return () if value else None
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return (str(value),)
