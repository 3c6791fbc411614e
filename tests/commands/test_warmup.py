"""What `tvlars-probe warmup` says of one run's warm-up below the verdict."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from tests.analyses.warmup.made_runs import FALLING, T, judged
from tvlars_probe.commands.warmup import render

if TYPE_CHECKING:
    from tvlars_probe.analyses.warmup.analysis import Warmup


def line_on_the_length(result: Warmup) -> str:
    console = Console(file=io.StringIO(), width=160)
    render(console, result)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    return next(line for line in printed.splitlines() if line.startswith(("Suggested: ", "If one is needed: ")))


def test_a_length_that_a_tensor_needs_names_it() -> None:
    hot = np.where(np.arange(T) <= 12, 40.0, 4.0)
    line = line_on_the_length(judged({"calm.weight": np.full(T, 4.0), "hot.weight": hot}))
    assert line.endswith("13 steps (2.6 epochs), set by hot.weight")


def test_a_length_that_the_loss_alone_needs_names_no_tensor() -> None:
    rising = FALLING.copy()
    rising[5:9] = 7.0
    line = line_on_the_length(judged({"a.weight": np.full(T, 4.0)}, warmup=0, loss=rising))
    assert line.endswith("9 steps (1.8 epochs): by then the loss, which rose, was back below its first value")
