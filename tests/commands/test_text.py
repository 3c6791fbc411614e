from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tvlars_probe.commands.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("command", ["show", "runs", "check", "warmup", "minimizer", "compare", "replay", "nothing"])
def test_a_strangers_run_cannot_steer_the_terminal(tmp_path: Path, cli: Callable[..., Any], command: str) -> None:
    name = "evil\x1b]0;owned\x07\x9b2J"
    model = torch.nn.Sequential()
    model.add_module(name, torch.nn.Linear(3, 2))
    optimizer = tvlars_probe.LARS(model.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "runs" / "r", config={"optimizer": {"name": name}}) as rec:
        for step in range(12):
            optimizer.zero_grad()
            model(torch.ones(4, 3) * step).square().sum().backward()
            optimizer.step()
            rec.log(loss=torch.tensor(1.0))
        rec.manifest.notes.append(name)
        rec.manifest.model = {"name": name, "parameters": 8}
    folder = tmp_path / "runs"
    told = cli(
        command, *([folder] if command == "runs" else [folder / "r"]), *(["--eta", "0.1"] * (command == "replay"))
    )
    assert command == "nothing" or told.code == 0, told.err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told.out + told.err)
    assert command not in ("show", "check") or "evil\\x1b]0;owned" in told.out


def test_an_error_that_quotes_a_long_text_is_cut(cli: Any) -> None:
    done = cli("show", "x" * 100_000)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert len(done.err) < 3000


def test_a_line_stays_one_line() -> None:
    assert one_line("a\nb\tc\x1b[0m") == "a\\nb\\tc\\x1b[0m"
