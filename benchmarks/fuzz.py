"""The command line under thousands of odd command lines and damaged runs, in one process.

    python -m benchmarks.fuzz --cases 2000

Hypothesis draws a command with options and values, valid and not, and run directories that were damaged in some way:
cut short, emptied, overwritten, filled with foreign values. A case fails if it ends in anything but an exit code that
is documented (0, 1, 2), prints a traceback, says nothing, or if a command that was refused (2) changed a file.
"""

from __future__ import annotations

import collections
import hashlib
import json
import random
import shutil
import tempfile
import time
import warnings
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tvlars_probe.charts.kinds import KINDS
from tvlars_probe.cli import COMMANDS
from tvlars_probe.cli import main as command_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXIT_CODES = (0, 1, 2)

NUMBERS = ["0", "-1", "1", "2", "3", "7", "x", "", "1e3", "0.5", "-0.1", "nan", "inf", "-inf", "٣", "1_0", " 2"]
WORDS = [
    "",
    "x",
    "none",
    "all",
    "last",
    "../..",
    "a b",
    "é",
    "\N{PILE OF POO}",
    "log",
    "10%",
    "-5%",
    "loss",
    "train",
    "a:b",
]
HUGE = ["99999999999999999999", "1e308", "1e-320"]
UNBOUNDED = {  # what would only take long
    "epochs", "cl_epochs", "points", "density_steps", "density_probes", "max_matvecs", "trace_matvecs", "seeds", "top",
    "bottom", "workers", "nproc", "threads", "jobs", "nodes", "gpus", "image_size",
}  # fmt: skip
LEFT_OUT = {
    "download",  # nothing is fetched
    "launcher", "port", "nproc", "precision",  # other processes
    "model", "winit", "stem",  # large models
    "audit", "epsilon", "per_layer",  # long
    "rerun", "as_json",
}  # fmt: skip

TRAINING = [
    "--devices",
    "cpu",
    "--threads",
    "1",
    "--limit",
    "24",
    "--bs",
    "8",
    "--epochs",
    "1",
    "--cl_epochs",
    "1",
    "--projector",
    "4-4",
    "--train-eval-samples",
    "4",
    "--probe-batch-size",
    "8",
    "--sharpness-samples",
    "4",
]
# What makes a command short; drawn options come later and win.
SAFE = {
    "train": TRAINING,
    "sharpness": [
        "--devices",
        "cpu",
        "--threads",
        "1",
        "--samples",
        "8",
        "--tol",
        "0.1",
        "--max-matvecs",
        "5",
        "--density-steps",
        "2",
    ],
    "landscape": ["--devices", "cpu", "--samples", "8", "--points", "3"],
    "sweep": [*TRAINING, "--dry-run"],
}
CHARTS = [*KINDS, "x", "--list"]


@dataclass
class Outcomes:
    """What the cases came to."""

    codes: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    damaged: int = 0

    @property
    def cases(self) -> int:
        """How many there were."""
        return sum(self.codes.values())

    def report(self) -> str:
        """In a few lines."""
        by_code: collections.Counter[int] = collections.Counter()
        for (_, code), count in self.codes.items():
            by_code[code] += count
        codes = ", ".join(f"exit {code}: {count}" for code, count in sorted(by_code.items()))
        commands = ", ".join(sorted({command for command, _ in self.codes}))
        return f"{self.cases} cases ({codes}), {self.damaged} on damaged runs; commands: {commands}"


@dataclass(frozen=True)
class Damage:
    """One thing done to a run directory; what it does follows from its numbers."""

    what: str
    where: int
    seed: int

    def do(self, run: Path) -> None:
        """Do it."""
        files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != ".lock")
        if not files:
            return
        path, draw = files[self.where % len(files)], random.Random(self.seed)
        content = path.read_bytes()
        if self.what == "cut":
            path.write_bytes(content[: draw.randrange(len(content) + 1)])
        elif self.what == "empty":
            path.write_bytes(b"")
        elif self.what == "overwrite":
            start = draw.randrange(len(content) + 1)
            path.write_bytes(content[:start] + draw.randbytes(min(64, len(content) - start)) + content[start + 64 :])
        elif self.what == "swap":
            path.write_bytes(files[draw.randrange(len(files))].read_bytes())
        elif self.what == "remove":
            path.unlink()
        elif self.what == "manifest":
            _change_manifest(run / "run.json", draw)


def _change_manifest(path: Path, draw: random.Random) -> None:
    """Put a value of another kind somewhere into it."""
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    values: list[Any] = [None, 1, -1, "x", "../../../etc", "<script>", [], {}, [1], {"a": 1}, 1e308, True, "nan", 99]
    places = list(_places(manifest))
    if places:
        home, key = draw.choice(places)
        home[key] = draw.choice(values)
    path.write_text(json.dumps(manifest))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key, item in [*(value.items() if isinstance(value, dict) else enumerate(value))]:
            yield value, key
            yield from _places(item)


damages = st.builds(
    Damage,
    st.sampled_from(["cut", "empty", "overwrite", "swap", "remove", "manifest", "manifest"]),
    st.integers(0, 1000),
    st.integers(0, 2**16),
)


def _value(parameter: click.Parameter, draw: st.DrawFn) -> list[str]:
    """Words for one option, valid or not."""
    name = parameter.opts[-1]
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [name]
    if isinstance(parameter.type, click.Choice):
        words = [*map(str, parameter.type.choices), *(["bogus"] if draw(st.integers(0, 5)) == 0 else [])]
    elif isinstance(parameter.type, click.Path):
        words = [
            "run",
            "missing",
            "",
            "run/run.json",
            "out.txt",
            "nowhere/out.csv",
            "out.json",
            "out.html",
            "out.svg",
            "run",
        ]
    elif isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        words = NUMBERS if parameter.name in UNBOUNDED else NUMBERS + HUGE
    else:
        words = [w for w in NUMBERS if w != "1e3"] + WORDS
    return [name, draw(st.sampled_from(words))]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with options; runs are called ``run`` and ``other``."""
    name = draw(st.sampled_from([*COMMANDS]))
    command = command_line.get_command(click.Context(command_line), name)
    assert command is not None
    words = [name]
    if isinstance(command, click.Group):
        child = draw(st.sampled_from([*command.commands]))
        words, command = [name, child], command.commands[child]
    words += SAFE.get(name, [])
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in LEFT_OUT]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)) if options else []:
        words += _value(option, draw)
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(st.sampled_from(["--bogus", "stray", "--", "--json", ""])))
    if name == "train":
        how = draw(st.sampled_from([[], ["--run-dir", "run"], ["--run-dir", "new"], ["--resume", "run"]]))
        return ["train", "--resume", "run"] if how[:1] == ["--resume"] and draw(st.booleans()) else words + how
    if name == "chart":
        words.append(draw(st.sampled_from(CHARTS)))
    if any(isinstance(p, click.Argument) for p in command.params):
        few = st.lists(st.sampled_from(["run", "run", "run", "other", "missing", "."]), min_size=0, max_size=2)
        words += draw(few) or ["run"]
    return words


class World:
    """A folder with two runs, put back before each case.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept, self.place = folder / "kept", folder / "place"
        self._kept.mkdir()
        with chdir(self._kept):
            for name, more in (("run", ["--opt", "tvlars", "--sharpness-every", "2"]), ("other", ["--opt", "lars"])):
                words = ["train", *TRAINING, "--epochs", "2", "--keep-checkpoints", "0", "--run-dir", name, *more]
                done = CliRunner().invoke(command_line, words)
                if done.exit_code:
                    raise RuntimeError(done.output)
        manifest = json.loads((self._kept / "run" / "run.json").read_text())
        manifest["status"] = "interrupted"  # so that it can be resumed
        (self._kept / "run" / "run.json").write_text(json.dumps(manifest))

    def attempt(self, words: list[str], damage: list[Damage], outcomes: Outcomes) -> None:
        """One case.

        Raises:
            AssertionError: what must not happen did.
        """
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self._kept, self.place)
        for one in damage:
            one.do(self.place / "run")
        before = snapshot(self.place)
        with chdir(self.place), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = CliRunner().invoke(command_line, words)
        outcomes.codes[words[0], result.exit_code] += 1
        outcomes.damaged += bool(damage)
        error = result.exception
        assert error is None or isinstance(error, SystemExit), f"{type(error).__name__}: {error}"
        assert result.exit_code in EXIT_CODES, f"exit code {result.exit_code}"
        assert "Traceback" not in result.output
        if result.exit_code:
            assert result.output.strip(), "it failed without a word"
        if result.exit_code == 2 or (result.exit_code == 1 and words[0] == "check"):
            changed = before.items() ^ snapshot(self.place).items()
            assert not changed or "--repair" in words, f"it failed, and changed {sorted(changed)}"


def snapshot(folder: Path) -> dict[str, str]:
    """Every file's content, by name; locks are empty and come and go."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def fuzz(world: World, cases: int, seed: int | None, outcomes: Outcomes) -> None:
    """Try as many cases; the first that fails is shrunk and raised."""
    cases_of = settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )

    @cases_of
    @given(command_lines(), st.lists(damages, max_size=2))
    def attempt(words: list[str], damage: list[Damage]) -> None:
        world.attempt(words, damage, outcomes)

    run: Callable[[], None] = attempt if seed is None else seeded(seed)(attempt)
    run()


@click.command()
@click.option("--cases", default=2000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(cases: int, seed: int) -> None:
    """Print how the cases ended."""
    import torch

    from benchmarks.environment import environment

    torch.set_num_threads(1)
    outcomes, began = Outcomes(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fuzz(World(Path(folder)), cases, seed, outcomes)
    print(environment())
    print(f"{outcomes.report()}; {time.monotonic() - began:.0f} s; none failed")


if __name__ == "__main__":
    main()
