"""The runs of the study: which methods are trained in which cases, at which rates and seeds.

Every method has the same budget: `BUDGET` settings are trained once, on the training data without the held-out fifth.
The setting with the highest held-out accuracy is then trained with `SEEDS`, and only these runs are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.runners.sweeps.grid import Grid
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tvlars_probe.runners.sweeps.trials import Trial

SEARCH_SEED = 100
"""Seed of the runs by which a setting is chosen: none of `SEEDS`, so that luck isn't carried over."""

SEEDS = (0, 1, 2, 3, 4)
BUDGET = 8
"""Settings that are tried of each method in each case."""

Options = dict[str, str]
"""Options of ``train`` and their values, by name; a flag's value is empty."""

MEASURED = {"sharpness-every": "log", "sharpness-operators": "adaptive", "sharpness-samples": "128"}
"""What is measured in the runs that are read."""


@dataclass(frozen=True)
class Case:
    """Data, model and batch size.

    Attributes:
        name: "fashion-mnist-512".
        options: of ``train``.
    """

    name: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: in tables and names of folders.
        options: of ``train``.
        tried: the settings among which one is chosen, `BUDGET` of them.
    """

    name: str
    options: Mapping[str, str]
    tried: Sequence[Options]

    def __post_init__(self) -> None:
        if len(self.tried) != BUDGET:
            raise ValueError(f"{self.name} tries {len(self.tried)} settings, and the others {BUDGET}")


_SHARED = {
    "augmentation": "none", "val": "0.2", "checkpoint-every": "0", "findings": "none", "train-eval-samples": "1000",
    "devices": "cpu",
    "threads": "1",
}  # fmt: skip

_DATA = {
    "fashion-mnist": ({"ds": "fashion-mnist", "limit": "10000", "model": "cnn-bn", "channels-last": "",
                       "epochs": "20"}, (512, 1024, 2048, 4096)),
    "digits": ({"ds": "digits", "model": "cnn", "channels-last": "", "epochs": "40"}, (512, 1024)),
}  # fmt: skip

CASES = {
    f"{name}-{batch}": Case(f"{name}-{batch}", {**_SHARED, **options, "bs": str(batch)})
    for name, (options, batches) in _DATA.items()
    for batch in batches
}
"""The cases, by name."""

PEAKS = ("1", "2", "4", "8", "16", "32", "64", "128")
"""Peak rates of LARS, a factor of two apart."""

UPDATES = {name: 20 * -(-8000 // batch) for name, batch in ((f"fashion-mnist-{b}", b) for b in (512, 1024, 2048, 4096))}
UPDATES |= {name: 40 * -(-1150 // batch) for name, batch in ((f"digits-{b}", b) for b in (512, 1024))}
"""Updates of a run, by case: the held-out fifth isn't trained on."""


def methods(case: str) -> tuple[Method, ...]:
    """The three methods of a case.

    LARS has the schedule of LARS with warm-up but for the warm-up: both fall as a half cosine. TVLARS has none, as the
    released experiments have it, since φ takes its place; of its delay factor λ two values are tried at four rates: by
    one φ falls to a tenth of its first value by the end of the run, by the other by half of it.
    """
    batch = int(case.rsplit("-", 1)[1])
    # lars-warm multiplies the rate by batch/256.
    rates = [{"lr": f"{float(peak) * 256 / batch:g}"} for peak in PEAKS]
    falls = [f"{2.4 / UPDATES[case]:.2g}", f"{4.8 / UPDATES[case]:.2g}"]
    delays = [{"lr": peak, "lmbda": lmbda} for peak in PEAKS[1::2] for lmbda in falls]
    return (
        Method("LARS", {"opt": "lars", "schedule": "lars-warm", "warmup-epochs": "0"}, rates),
        Method("LARS with warm-up", {"opt": "lars", "schedule": "lars-warm"}, rates),
        Method("TVLARS", {"opt": "tvlars", "schedule": "none"}, delays),
    )


def trials_of(case: str, method: Method, setting: Options, seeds: Sequence[int], folder: Path) -> list[Trial]:
    """The runs of a method with one setting, by seed."""
    options = {**CASES[case].options, **method.options, **setting}
    settings = {name: (value,) if value else () for name, value in options.items()}
    return build_trials(Grid(settings=settings, axes={"seeds": tuple(map(str, seeds))}), folder)


def searched(case: str, folder: Path) -> list[Trial]:
    """The runs by which the settings of a case are chosen."""
    return [
        trial
        for method in methods(case)
        for setting in method.tried
        for trial in trials_of(case, method, setting, (SEARCH_SEED,), folder)
    ]


def chosen(case: str, method: Method, folder: Path) -> Options:
    """The setting of a method with the highest held-out accuracy at the end; of several the first."""
    found = []
    for place, setting in enumerate(method.tried):
        (trial,) = trials_of(case, method, setting, (SEARCH_SEED,), folder)
        run = open_run(trial.path)
        accuracy = 0.0 if run.status == "diverged" else float(run.epochs(["val_acc1"])["val_acc1"].iloc[-1])
        found.append((accuracy, -place, setting))
    return max(found, key=lambda item: item[:2])[2]


VARIED = "fashion-mnist-1024"
"""The case in which variants are tried."""

INITIALIZATIONS = ("default", "xavier", "kaiming")

DELAYS = (0.6, 1.2, 2.4, 4.8, 9.6)
"""λ times the number of updates: by the end of the run φ, at first 0.91, falls to 0.52, 0.29, 0.09, 0.008 and 7e-5."""


def initialised(folder: Path) -> list[Trial]:
    """All methods with each initialisation, at the settings that were chosen with the default one."""
    return [
        trial
        for method in methods(VARIED)
        for winit in INITIALIZATIONS[1:]
        for trial in trials_of(
            VARIED, method, {**chosen(VARIED, method, folder), "winit": winit, **MEASURED}, SEEDS, folder
        )
    ]


def delayed(case: str, folder: Path) -> list[Trial]:
    """TVLARS with delay factors around the one that was chosen, at the rate that was chosen."""
    (method,) = (m for m in methods(case) if m.name == "TVLARS")
    setting = chosen(case, method, folder)
    return [
        trial
        for fall in DELAYS
        for trial in trials_of(case, method, {**setting, "lmbda": f"{fall / UPDATES[case]:.2g}"}, SEEDS, folder)
    ]


def trained(case: str, folder: Path) -> list[Trial]:
    """The runs of a case that are read, with the settings that were chosen."""
    return [
        trial
        for method in methods(case)
        for trial in trials_of(case, method, {**chosen(case, method, folder), **MEASURED}, SEEDS, folder)
    ]
