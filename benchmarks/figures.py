"""What a benchmark found, beside what was aimed at, and what it was measured on."""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.environment import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", Path(__file__).parent / "results"))
"""Ignored by git. The variable leads small trial runs elsewhere, so that they don't replace what was measured."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table of aims.

    Attributes:
        what: was measured.
        value: median over interleaved rounds.
        aim: its bound.
        sense: on which side of the bound the aim is met.
        unit: "1" is a ratio.
        floor: what holds the figure where the aim is not met.
        note: the figures behind it, for orientation.
    """

    what: str
    value: float
    aim: float
    sense: Literal["at most", "at least"] = "at most"
    unit: str = "1"
    floor: str = ""
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the aim is."""
        return self.value <= self.aim if self.sense == "at most" else self.value >= self.aim


def save(name: str, figures: list[Figure], about: str = "") -> None:
    """Print the figures and keep them, with their environment, in ``results/<name>.json``.

    Args:
        name: of the benchmark.
        figures: its rows.
        about: what ``environment`` doesn't tell, such as the name of an accelerator.
    """
    RESULTS.mkdir(exist_ok=True)
    told = f"{about}; {environment()}" if about else environment()
    content = {"environment": told, "figures": [asdict(figure) for figure in figures]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False))
    show(figures)
    print(told)


def load(name: str) -> list[Figure]:
    """The figures that the benchmark of that name kept last, none if it kept none."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    return [Figure(**figure) for figure in json.loads(path.read_text())["figures"]]


def show(figures: list[Figure]) -> None:
    """Print each figure with its aim, met or not; an unmet one with its reason."""
    table = Table(box=None, pad_edge=False)
    for title, side in (("what", "left"), ("figure", "right"), ("aim", "right"), ("", "left"), ("behind it", "left")):
        table.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    for figure in figures:
        unit = "" if figure.unit == "1" else f" {figure.unit}"
        aim = f"{figure.sense} {figure.aim:g}{unit}"
        table.add_row(figure.what, f"{figure.value:.4g}{unit}", aim, "met" if figure.met else "NOT MET", figure.note)
    console = Console(highlight=False, width=150)
    console.print(table)
    for figure in figures:
        if not figure.met:
            console.print(f"not met: {figure.what}: {figure.floor or 'no reason known'}")


def interleaved(
    jobs: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of each job in each round; the jobs take turns, and every other round runs them backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + warm_up):
        for name in list(jobs)[:: 1 if turn % 2 else -1]:
            report(f"round {turn + 1} of {rounds + warm_up}: {name}")
            start = time.perf_counter()
            jobs[name]()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def paired(seconds: Mapping[str, list[float]], name: str, over: str) -> float:
    """Median over the rounds of one job's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[over], strict=True))


def milliseconds(seconds: Mapping[str, list[float]], *names: str) -> str:
    """Medians, for orientation."""
    return ", ".join(f"{name} {statistics.median(seconds[name]) * 1e3:.1f} ms" for name in names)
