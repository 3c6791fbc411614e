"""How often each rule finds what was planted, how often it finds something in a sound run, and what a flush costs.

    python -m benchmarks.findings --write      also writes the table of docs/guides/findings.md

Sound runs are trained by ``train`` on scikit-learn's digits: every optimizer that it knows, two batch sizes, two
schedules, three seeds and two rates. One that ends with a test accuracy of at least 90 % is sound. All rules are
applied to each; a rule is wrong about a run if it finds anything in it.
"""

from __future__ import annotations

import collections
import itertools
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from rich.progress import track
from scipy import stats

from benchmarks.figures import Figure, save
from benchmarks.planted_findings import PLANTED, plant
from tvlars_probe import open_run
from tvlars_probe.data.registry import DataConfig
from tvlars_probe.findings.ids import DEFAULT
from tvlars_probe.findings.inspector import RULES, Inspector
from tvlars_probe.findings.window import Tensors, Window
from tvlars_probe.models.backbones import ModelConfig
from tvlars_probe.optimizers.description_words import Scaling
from tvlars_probe.optimizers.group_description import GroupDescription
from tvlars_probe.optimizers.registry import OPTIMIZERS, OptimizerConfig
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.train import train

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "findings.md"

RATES = {
    "lars": (5.0, 15.0), "tvlars": (5.0, 15.0), "lamb": (0.01, 0.03), "nlamb": (0.01, 0.03), "sgd": (0.05, 0.1),
    "adam": (0.001, 0.003), "adamw": (0.001, 0.003), "adagrad": (0.01, 0.03), "muon": (0.01, 0.03),
    "rmsprop": (0.0005, 0.001),
}  # fmt: skip
"""Peak rates, by optimizer, at batch 512; at batch 64 the optimizers without a trust ratio take half of them."""

SIZES = ((512, 40), (64, 15))
"""Batch sizes and epochs: 120 and 345 updates."""

SCALED = {"lars", "tvlars", "lamb", "nlamb"}

JUDGED = {
    "ratio_clamped": SCALED - {"lars"},
    "ratio_vanished": SCALED,
    "full_rate_from_zero": SCALED,
    "phi_dead": {"tvlars"},
    "excluded_overwritten": {"lars", "tvlars"},
}
"""Optimizers whose runs a rule can judge, where these aren't all: other runs would only flatter its rate."""

SOUND = 90.0
"""Test accuracy, in %, from which a run is sound."""

FIRST_SEED = 3
"""Thresholds were chosen on runs with seeds 0 to 2: the rates are those of other runs."""

MOST_FALSE = 0.05
"""Share of sound runs in which a rule may find something and still be on by default."""


def grid(seeds: int) -> Iterator[tuple[str, TrainConfig]]:
    """The runs: a name and a configuration each."""
    cases = itertools.product(OPTIMIZERS, SIZES, ("none", "cosine"), (0, 1), range(FIRST_SEED, FIRST_SEED + seeds))
    for optimizer, (batch, epochs), schedule, which, seed in cases:
        rate = RATES[optimizer][which] * (0.5 if batch == 64 else 1.0)
        name = f"{optimizer}-bs{batch}-{schedule}-lr{rate:g}-seed{seed}"
        yield (
            name,
            TrainConfig(
                data=DataConfig(name="digits"),
                # Muon needs matrices between the first and the last layer, of which the cnn has none.
                model=ModelConfig(name="mlp" if optimizer == "muon" else "cnn"),
                optimizer=OptimizerConfig(name=optimizer, lr=rate),
                schedule=ScheduleConfig(name=schedule),
                place=PlaceConfig(devices=("cpu",), threads=1),
                recording=RecordConfig(findings=("all",), noise=True, checkpoint_every=0, train_eval_samples=0),
                batch_size=batch,
                micro_batch=batch // 4,
                epochs=epochs,
                seed=seed,
            ),
        )


def false_alarms(seeds: int, only: int | None, folder: Path) -> tuple[int, dict[str, int], dict[str, list[str]]]:
    """Train the grid.

    Returns:
        the number of runs; by rule, the number of sound ones that it can judge, and those in which it found something.
    """
    runs, sound, wrong = [*grid(seeds)][:only], dict.fromkeys(RULES, 0), collections.defaultdict(list)
    for name, config in track(runs, "sound runs"):
        run = open_run(train(config, folder / name, quiet=True))
        if run.status != "completed" or (run.manifest.final.get("test_acc1") or 0) < SOUND:
            continue
        for rule in RULES:
            sound[rule] += config.optimizer.name in JUDGED.get(rule, OPTIMIZERS)
        for rule in run.findings(["rule"])["rule"].unique():
            wrong[str(rule)].append(name)
    return len(runs), sound, dict(wrong)


def flush_milliseconds(rows: int, tensors: int = 1000, rounds: int = 31) -> float:
    """Median time in which all default rules look at a flush of so many steps."""
    rng = np.random.default_rng(0)
    described = GroupDescription(
        optimizer="LARS", scaling=Scaling(kind="trust-ratio", weight_cap=1e9, divisor_cap=1e9, spares_vectors=True)
    )
    names = [f"layer{k // 2}.{'bias' if k % 2 else 'weight'}" for k in range(tensors)]
    about = Tensors.of(names, [described] * tensors, [1 if k % 2 else 4 for k in range(tensors)], [2**-24] * tensors)
    inspector, seconds = Inspector(), []
    for turn in range(rounds + 3):
        figures = dict.fromkeys(("weight_norm", "grad_norm", "direction_norm", "trust_ratio"))
        made = {name: rng.uniform(0.5, 2, (rows, tensors)) for name in figures}
        made |= {"update_norm": rng.uniform(0.005, 0.02, (rows, tensors)), "phi": np.full((rows, tensors), np.nan)}
        window = Window(
            turn * rows, rng.uniform(1, 2, rows), np.ones(rows, bool), rng.uniform(1, 2, rows), np.zeros(rows, bool),
            np.full(rows, np.nan), np.ones((rows, tensors), bool), np.ones((rows, tensors)), made, about,
        )  # fmt: skip
        start = time.perf_counter()
        inspector.inspect(window)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:]) * 1e3


def table(sound: dict[str, int], wrong: dict[str, list[str]], planted: dict[str, tuple[int, int | None]]) -> str:
    """The table of docs/guides/findings.md."""
    lines = ["| rule | what it finds | planted | found in step | sound runs | default |", "|---|---|---|---|---|---|"]
    for name, rule in RULES.items():
        step, found = planted[name]
        count = len(wrong.get(name, ()))
        interval = stats.binomtest(count, max(sound[name], 1)).proportion_ci(method="wilson")
        share = f"{count} of {sound[name]} ({100 * interval.low:.1f} to {100 * interval.high:.1f} %)"
        lines.append(
            f"| `{name}` | {rule.about} | {PLANTED[name].about}, step {step} | "
            f"{'not found' if found is None else found} | {share} | {'on' if name in DEFAULT else 'off'} |"
        )
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between its marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    marks = r"(<!-- python -m benchmarks.findings --write -->\n).*?(\n<!-- end -->)"
    PAGE.write_text(re.sub(marks, lambda m: f"{m[1]}{text}{m[2]}", page, flags=re.DOTALL), encoding="utf-8")


@click.command()
@click.option("--seeds", default=3, show_default=True, help="Seeds of each cell of the grid.")
@click.option("--runs", type=int, help="Train only the first so many runs of the grid.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the runs are kept; those that are there count.")
@click.option("--write", "writes", is_flag=True, help="Write the table into docs/guides/findings.md.")
def main(seeds: int, runs: int | None, folder: Path | None, writes: bool) -> None:
    """Plant what each rule is to find, train sound runs, and time the rules."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        planted = {name: plant(name, Path(scratch, "planted", name)) for name in RULES}
        total, sound, wrong = false_alarms(seeds, runs, folder or Path(scratch, "sound"))
    text = table(sound, wrong, planted)
    print(text)
    print(f"{sound['non_finite']} of {total} runs are sound")
    for name, names in wrong.items():
        print(f"{name}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}")
    if writes:
        write(text)
    costs: list[Any] = [(rows, flush_milliseconds(rows)) for rows in (1, 50)]
    figures = [
        Figure(
            what="rules that miss what was planted, or find it more than a flush late",
            value=sum(found != step for step, found in planted.values()), aim=0,
        ),
        Figure(
            what="highest rate of false alarms of a rule that is on by default",
            value=max(len(wrong.get(name, ())) / max(sound[name], 1) for name in DEFAULT), aim=MOST_FALSE,
            note=f"{sound['non_finite']} sound runs",
        ),
        *(
            Figure(what=f"all default rules, a flush of {rows} steps of 1,000 tensors", value=ms, aim=1, unit="ms")
            for rows, ms in costs
        ),
    ]  # fmt: skip
    save("findings", figures)


if __name__ == "__main__":
    main()
