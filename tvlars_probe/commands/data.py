"""``tvlars-probe data``: which data sets there are, and the import of one that is slow to read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.commands.options import HELP_NAMES, Command, FilePath, Group, option
from tvlars_probe.commands.text import say
from tvlars_probe.data.registry import DATASETS

if TYPE_CHECKING:
    from pathlib import Path


@click.group(cls=Group, name="data", context_settings=HELP_NAMES)
def command() -> None:
    """Data sets: which are there, where, and how to get the others."""


@command.command(cls=Command, name="list")
@option("--data-dir", section="Where", type=FilePath(), help="Look here, not in the usual places.")
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
def list_command(data_dir: Path | None, as_json: bool) -> None:
    """List the data sets: where each is, how many images it has, how to get it if it isn't there."""
    rows = [_row(name, data_dir) for name in DATASETS]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        images = f"{row['train']:,} + {row['test']:,} images" if row["there"] else "not there"
        say(f"{row['name']}: {row['about']}")
        say(f"    {images}; {row['where'] if row['there'] else 'to get it: ' + row['obtain']}")


def _row(name: str, folder: Path | None) -> dict[str, Any]:
    """What is told of a data set; its images are counted without being read."""
    entry = DATASETS[name]
    loader = entry.loader
    home = loader.find(name, folder)
    there = home is not None or entry.included  # one that comes with a package has no folder
    train, test = loader.count(home) if there else (None, None)
    return {
        "name": name,
        "about": entry.about,
        "there": there,
        "where": str(home) if home else entry.obtain,
        "train": train,
        "test": test,
        "obtain": entry.obtain,
    }


@command.command(cls=Command, name="import-tiny-imagenet")
@click.argument("source", type=FilePath(exists=True, file_okay=False))
@option("--data-dir", section="Where", type=FilePath(), show_default="data/tiny-imagenet-200", help=
        "Where to put it.")  # fmt: skip
@option("--workers", section="Where", type=int, default=4, help="Threads that decode images.")
def import_command(source: Path, data_dir: Path | None, workers: int) -> None:
    """Make Tiny ImageNet quick to read.

    SOURCE is the folder of the Hugging Face copy's parquet files, or the original tiny-imagenet-200. The images are
    decoded once, into arrays in packed/ that take 1.4 GB.
    """
    from tvlars_probe.data.tiny_imagenet import PACKED, USUAL_PLACE, import_into
    from tvlars_probe.extras import require_torch

    require_torch()  # before a folder is made

    home = data_dir or USUAL_PLACE
    train, test = import_into(home, source, workers)
    say(f"{train:,} + {test:,} images in {home / PACKED}")
