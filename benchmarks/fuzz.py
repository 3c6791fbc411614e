"""The command line under thousands of odd command lines and damaged runs, in one process.

    python -m benchmarks.fuzz --cases 2000

Hypothesis draws a command with options and values, valid and not, and damages files first: by accident (cut short,
emptied, overwritten, filled with foreign values), or by intent: footers, pickles, manifests, grids and images that are
what they should be and would cost what no file may. A case fails if it ends in anything but an exit code that is
documented (0, 1, 2), prints a traceback, says nothing, takes over 20 seconds or 1 GiB, or if a command that was refused
(2) changed a file.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from benchmarks.fuzzing.command_lines import SAFE, TRAINING, command_lines
from benchmarks.fuzzing.damages import ACCIDENTS, Damage, damages
from benchmarks.fuzzing.hostile import OF_CHECKPOINTS, OF_RUNS, parquets, pictures
from benchmarks.fuzzing.watching import MOST_BYTES, MOST_SECONDS, Cost, TooLongError, watched
from tvlars_probe.cli import main as command_line
from tvlars_probe.runners.sweeps.grid import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

EXIT_CODES = (0, 1, 2)


@dataclass
class Outcomes:
    """What the cases came to."""

    codes: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    damaged: int = 0
    longest: float = 0.0
    most: int = 0
    faults: list[str] = field(default_factory=list)

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
        kinds = {"tracebacks": "traceback", f"over {MOST_SECONDS:.0f} s": "it took over", "beyond 1 GiB": "MiB"}
        counts = [f"{name}: {sum(word in fault for fault in self.faults)}" for name, word in kinds.items()]
        return (
            f"{self.cases} cases ({codes}), {self.damaged} on damaged files; commands: {commands}; "
            f"{', '.join(counts)}, "
            f"in all {len(self.faults)} faults; longest {self.longest:.1f} s, most memory {self.most >> 20} MiB"
        )


class World:
    """A folder with two runs, a grid and two folders of images, put back before each case.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept, self.place = folder / "kept", folder / "place"
        self.kept.mkdir()
        with chdir(self.kept):
            for name, more in (("run", ["--opt", "tvlars", "--sharpness-every", "2"]), ("other", ["--opt", "lars"])):
                words = ["train", *TRAINING, "--epochs", "2", "--keep-checkpoints", "0", "--run-dir", name, *more]
                done = CliRunner().invoke(command_line, words)
                if done.exit_code:
                    raise RuntimeError(done.output)
        manifest = json.loads((self.kept / "run" / "run.json").read_text())
        manifest["status"] = "interrupted"  # so that it can be resumed
        (self.kept / "run" / "run.json").write_text(json.dumps(manifest))
        shutil.copy(SHIPPED / "classification-512.toml", self.kept / "grid.toml")
        pictures(self.kept / "pictures")
        parquets(self.kept / "parquets")

    def attempt(self, words: list[str], damage: list[Damage], outcomes: Outcomes) -> list[str]:
        """One case.

        Returns:
            what happened that must not happen.
        """
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.kept, self.place)
        # FIFOs come last: another damage would wait for them.
        for one in sorted(damage, key=lambda one: one.what == "special"):
            one.do(self.place)
        before = snapshot(self.place)
        result, cost = None, Cost()
        with chdir(self.place), warnings.catch_warnings(), contextlib.suppress(TooLongError):
            warnings.simplefilter("ignore")
            with watched() as cost:
                result = CliRunner().invoke(command_line, words)
        changed = {} if result is None else before.items() ^ snapshot(self.place).items()
        wrong = [*_wrong(words, result, cost, sorted(name for name, _ in changed))]
        outcomes.codes[words[0], -1 if result is None else result.exit_code] += 1
        outcomes.damaged += bool(damage)
        outcomes.longest, outcomes.most = max(outcomes.longest, cost.seconds), max(outcomes.most, cost.memory)
        outcomes.faults += [f"{' '.join(words)} after {damage}: {what}" for what in wrong]
        return wrong


def _wrong(words: list[str], result: Result | None, cost: Cost, changed: list[str]) -> Iterator[str]:
    if result is None or cost.seconds > MOST_SECONDS:
        yield f"it took over {MOST_SECONDS:.0f} s"
    # A model and its Hessian are built here, too: they are small.
    if cost.memory > MOST_BYTES:
        yield f"it took {cost.memory >> 20} MiB"
    if result is None:
        return
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        yield f"traceback of {type(error).__name__}: {error}"
    elif result.exit_code not in EXIT_CODES:
        yield f"exit code {result.exit_code}"
    if "Traceback" in result.output:
        yield "traceback in what was printed"
    if result.exit_code and not result.output.strip():
        yield "it failed without a word"
    refused = result.exit_code == 2 or (result.exit_code == 1 and words[0] == "check")
    if refused and changed and "--repair" not in words:
        yield f"it failed, and changed {changed}"


def snapshot(folder: Path) -> dict[str, str]:
    """Every file's content, by name; locks are empty and come and go."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


_SWEEP = ["sweep", "grid.toml", *SAFE["sweep"]]
_PICTURES = ["train", *TRAINING, "--ds", "imagefolder", "--data-dir", "pictures", "--bs", "2", "--run-dir", "new"]
_IMPORT = ["data", "import-tiny-imagenet", "parquets", "--data-dir", "imported"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[Damage]]:
    """A command line and what is done to the folder first."""
    kind = draw(st.sampled_from(["whole", "accident", "accident", "run", "run", "checkpoint", "toml", "images"]))
    if kind == "toml":
        return _SWEEP, draw(damages("toml", "toml", "special"))
    if kind == "images":
        if draw(st.booleans()):
            return _IMPORT, draw(damages("parquet images"))
        sized = draw(st.sampled_from([["--image-size", "8"], []]))
        return [*_PICTURES, *sized], draw(damages("images", "images", "special"))
    if kind == "checkpoint":
        readers = [["check", "run"], ["train", "--resume", "run"]]
        readers += [[name, "run", *SAFE[name]] for name in ("sharpness", "landscape")]
        return draw(st.sampled_from(readers)), draw(damages(*OF_CHECKPOINTS))
    words = draw(command_lines())
    if kind == "whole":
        return words, []
    return words, draw(damages(*(ACCIDENTS if kind == "accident" else OF_RUNS)))


def fuzz(
    world: World,
    count: int,
    seed: int | None,
    outcomes: Outcomes,
    *,
    until_one_fails: bool = True,
    after_each: Callable[[], object] = lambda: None,
) -> None:
    """Try as many cases.

    Args:
        world: where.
        count: how many.
        seed: of what is drawn; None always draws the same.
        outcomes: gets what the cases came to.
        until_one_fails: whether the first that fails is shrunk and raised; otherwise all are tried.
        after_each: called after each case.

    Raises:
        AssertionError: a case failed, and ``until_one_fails`` is set.
    """
    cases_of = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=[Phase.generate, Phase.shrink] if until_one_fails else [Phase.generate],
        suppress_health_check=[*HealthCheck],
    )

    @cases_of
    @given(cases())
    def attempt(case: tuple[list[str], list[Damage]]) -> None:
        wrong = world.attempt(*case, outcomes)
        after_each()
        assert not (wrong and until_one_fails), wrong

    run: Callable[[], None] = attempt if seed is None else seeded(seed)(attempt)
    run()


@click.command()
@click.option("--cases", "count", default=2000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Print how the cases ended, and each that failed; the exit code is 1 if any did."""
    import torch

    from benchmarks.environment import environment

    torch.set_num_threads(1)
    outcomes, began = Outcomes(), time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        click.progressbar(length=count, label="cases", file=sys.stderr) as bar,
    ):
        fuzz(World(Path(folder)), count, seed, outcomes, until_one_fails=False, after_each=lambda: bar.update(1))
    print(environment())
    print(f"{outcomes.report()}; {time.monotonic() - began:.0f} s")
    for fault in outcomes.faults:
        print(fault)
    raise SystemExit(bool(outcomes.faults))


if __name__ == "__main__":
    main()
