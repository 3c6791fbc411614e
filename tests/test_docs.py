"""What README and docs/ show works: every code block is executed, generated pages are what would be generated."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tests.data.idx import write_fashion_mnist
from tvlars_probe.cli import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("[!_]*/*.md")),
]
EXECUTED = {"python", "console"}
LONGEST = {"README", "analyses", "branches", "getting_started", "how_to", "sharpness", "training"}
ELSEWHERE = {"integrations", "trackers"}  # their blocks need other packages: tests/integrations runs them
SHOWN = {"text", "sh"}  # output, and the Makefile's own targets, which CI runs


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def generated() -> dict[str, Callable[[], str]]:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES  # type: ignore[no-any-return]


def executed() -> list[Any]:
    there = [p for p in PAGES if p.stem not in ELSEWHERE and any(kind in EXECUTED for kind, _ in blocks(p))]
    slow = [pytest.mark.slow]
    return [pytest.param(p, id=p.stem, marks=slow if p.stem in LONGEST else []) for p in there]


@pytest.mark.parametrize("page", executed())
def test_every_code_block_of_a_page_runs(page: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "fashion-mnist", train=100, test=20)
    names: dict[str, Any] = {"__name__": "docs"}
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, page.name, "exec"), names)
        elif kind == "console":
            for line in command_lines(text):
                run_line(line, cli, tmp_path)
        else:
            assert kind in SHOWN, f"{page.name} has a block of kind {kind!r}"
    torch.set_num_threads(1)


def command_lines(text: str) -> Iterator[str]:
    """The commands of a block; one with a backslash or open quotes at the end of a line goes on in the next."""
    waiting: list[str] = []
    for line in re.sub(r"\\\n *", "", text).splitlines():
        waiting.append(line)
        try:
            shlex.split("\n".join(waiting))
        except ValueError:  # no closing quotation
            continue
        yield "\n".join(waiting)
        waiting = []
    assert not waiting, f"a quote isn't closed: {waiting}"


def run_line(line: str, cli: Callable[..., Any], folder: Path) -> None:
    assert line.startswith("$ "), f"a console block holds commands, not {line!r}"
    line, _, code = line.removeprefix("$ ").partition("  # exit code ")
    program, *words = shlex.split(line)
    if program == "tvlars-probe":
        outcome = cli(*words)
        assert outcome.code == int(code or 0), f"{line}\n{outcome.err}"
        return
    assert program == "torchrun", line
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    subprocess.run(command, cwd=folder, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", ["cli.md", "tables.md", "warmup_features.md"])
def test_generated_pages_are_what_would_be_generated_now(name: str) -> None:
    stored = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert stored.split() == generated()[name]().split(), "run `make docs`"


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. auto\w+:: tvlars_probe\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(tvlars_probe.__all__)


def test_every_command_and_option_is_documented() -> None:
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert f"## tvlars-probe {name}" in reference
        for option in command.params:
            assert option.param_type_name == "argument" or option.opts[0] in reference
            assert option.param_type_name == "argument" or option.help, f"{name} {option.name} has no help"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
