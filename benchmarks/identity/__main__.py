"""``python -m benchmarks.identity``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.identity.answers import analyses, charts
from benchmarks.identity.hashes import Record
from benchmarks.identity.loops import loops
from benchmarks.identity.runs import curvature, ranks_and_kills, trainings

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS: dict[str, Callable[[Record], None]] = {
    "trainings": trainings,
    "ranks": ranks_and_kills,
    "curvature": curvature,
    "analyses": analyses,
    "charts": charts,
    "loops": loops,
}


@click.group()
def main() -> None:
    """Record what a version computes, or compare two records."""


@main.command(name="record")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--package", type=click.Path(path_type=Path, exists=True), help="Checkout to record, if not this one.")
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these, in this order.")
def record_command(out: Path, package: Path | None, parts: tuple[str, ...]) -> None:
    """Run everything with this checkout's package, or another one's, and write the hashes to OUT."""
    if package is not None:
        sys.path.insert(0, str(package.resolve()))
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    out = out.absolute()
    import torch

    import tvlars_probe

    torch.set_num_threads(1)
    sys.argv = ["tvlars-probe"]  # a run keeps the command line that made it
    home = Path(tvlars_probe.__file__).parent.parent
    os.environ["PYTHONPATH"] = str(home)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        record = Record(Path(folder).resolve())
        for name in parts or PARTS:
            began, before = time.monotonic(), len(record.hashes)
            PARTS[name](record)
            click.echo(f"{name}: {len(record.hashes) - before:,} hashes in {time.monotonic() - began:.0f} s")
    out.write_text(json.dumps({"package": str(home), "hashes": record.hashes}, indent=0))
    click.echo(f"{len(record.hashes):,} hashes of {home}: {out}")


@main.command(name="compare")
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path, exists=True))
def compare_command(old: Path, new: Path) -> None:
    """Name every hash that differs or stands on one side only."""
    before, after = (json.loads(path.read_text())["hashes"] for path in (old, new))
    differing = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    for label, names in (
        ("differs", differing),
        ("only in the old one", before.keys() - after.keys()),
        ("only in the new one", after.keys() - before.keys()),
    ):
        for name in sorted(names):
            click.echo(f"{label}: {name}")
    equal = len(before.keys() & after.keys()) - len(differing)
    click.echo(f"{equal:,} hashes are equal of {len(before):,} old and {len(after):,} new ones")
    if equal < max(len(before), len(after)):
        sys.exit(1)


if __name__ == "__main__":
    main()
