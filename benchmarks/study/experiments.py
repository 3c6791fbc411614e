"""The runs of the study: which methods are trained in which cases, at which rates and seeds.

Every method has the same budget: `BUDGET` settings are trained on the training data without the held-out fifth. The
setting with the highest held-out accuracy is then trained with `SEEDS`, and only these runs are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.runners.sweeps.grid import Grid
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tvlars_probe.runners.sweeps.trials import Trial

SEARCH_SEEDS = (100, 101, 102)
"""Seeds of the runs by which a setting is chosen: none of `SEEDS`, so that luck isn't carried over."""

SEEDS = (0, 1, 2, 3, 4)
BUDGET = 8
"""Settings that are tried of each method in each case."""

METHODS = (LARS, WARM, TVLARS) = ("LARS", "LARS with warm-up", "TVLARS")
"""Names of the methods."""

Options = dict[str, str]
"""Options of ``train`` and their values, by name; a flag's value is empty."""

MEASURED = {"sharpness-every": "log", "sharpness-operators": "adaptive", "sharpness-samples": "128"}
"""What is measured in the runs that are read. All have it: what is measured doesn't change the name of a run, and one
run may be in several tables."""


@dataclass(frozen=True)
class Case:
    """Data, model and batch size.

    Attributes:
        name: "fashion-mnist-512".
        options: of ``train``.
        searches: how many of `SEARCH_SEEDS` each setting is tried with.
    """

    name: str
    options: Mapping[str, str]
    searches: int = 1


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

# Few images of digits are held out: one run of each setting would choose by luck.
_DATA = {
    "fashion-mnist": ({"ds": "fashion-mnist", "limit": "10000", "model": "cnn-bn", "channels-last": "",
                       "epochs": "20"}, (512, 1024, 4096), 1),
    "digits": ({"ds": "digits", "model": "cnn", "channels-last": "", "epochs": "40"}, (512, 1024), 3),
}  # fmt: skip

CASES = {
    f"{name}-{batch}": Case(f"{name}-{batch}", {**_SHARED, **options, "bs": str(batch)}, searches)
    for name, (options, batches, searches) in _DATA.items()
    for batch in batches
}
"""The cases, by name."""

BARLOW_TWINS = "digits-barlow-twins-512"
CASES[BARLOW_TWINS] = Case(
    BARLOW_TWINS,
    {**_SHARED, "ds": "digits", "model": "cnn", "channels-last": "", "mode": "bt", "cl-epochs": "40", "epochs": "10",
     "projector": "128-128-128", "bs": "512"},
)  # fmt: skip
"""Barlow Twins at a small size: 120 updates without labels, then a linear probe on the frozen backbone."""

PEAKS = ("1", "2", "4", "8", "16", "32", "64", "128")
"""Peak rates of LARS, a factor of two apart."""

UPDATES = {name: 20 * -(-8000 // batch) for name, batch in ((f"fashion-mnist-{b}", b) for b in (512, 1024, 4096))}
UPDATES |= {name: 40 * -(-1150 // batch) for name, batch in ((f"digits-{b}", b) for b in (512, 1024))}
UPDATES[BARLOW_TWINS] = 120
"""Updates of a run, by case: the held-out fifth isn't trained on. Of Barlow Twins those of the pretraining."""


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
        Method(LARS, {"opt": "lars", "schedule": "lars-warm", "warmup-epochs": "0"}, rates),
        Method(WARM, {"opt": "lars", "schedule": "lars-warm"}, rates),
        Method(TVLARS, {"opt": "tvlars", "schedule": "none"}, delays),
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
        for trial in search_of(case, method, setting, folder)
    ]


def search_of(case: str, method: Method, setting: Options, folder: Path) -> list[Trial]:
    """The runs by which one setting is tried."""
    return trials_of(case, method, setting, SEARCH_SEEDS[: CASES[case].searches], folder)


def chosen(case: str, method: Method, folder: Path) -> Options:
    """The setting of a method with the highest mean held-out accuracy at the end; of several the first."""
    found = []
    for place, setting in enumerate(method.tried):
        accuracies = [_held_out_accuracy(trial) for trial in search_of(case, method, setting, folder)]
        found.append((sum(accuracies) / len(accuracies), -place, setting))
    return max(found, key=lambda item: item[:2])[2]


def _held_out_accuracy(trial: Trial) -> float:
    run = open_run(trial.path)
    return 0.0 if run.status == "diverged" else float(run.epochs(["val_acc1"])["val_acc1"].iloc[-1])


VARIED = "fashion-mnist-1024"
"""The case in which initialisations and variants are tried."""

INITIALIZATIONS = ("default", "xavier_normal", "kaiming_normal")

DELAYED = ("fashion-mnist-4096", "digits-512", "digits-1024")
"""The cases in which delay factors are tried."""

DELAYS = (0.6, 1.2, 2.4, 4.8, 9.6)
"""λ times the number of updates: by the end of the run φ, at first 0.91, falls to 0.52, 0.29, 0.09, 0.008 and 7e-5."""

EXCLUDED_RATE = "0.1"
"""The rate of biases and normalisation in a variant: what SGD is given. By default they have the peak rate."""

CLAMPED = {"opt": "tvlars", "lmbda": "0", "alpha": "0.1", "eta": "0.0011"}
"""LARS with both norms clamped at 10, as TVLARS has them: with λ = 0 its φ is 1/(1 + alpha) throughout, and η makes up
for it."""

VARIANTS: dict[str, tuple[str, Options]] = {
    "LARS with warm-up, norms clamped at 10": (WARM, CLAMPED),
    "LARS with warm-up, biases at 0.1": (WARM, {"excluded-lr": EXCLUDED_RATE}),
    "TVLARS, biases at 0.1": (TVLARS, {"excluded-lr": EXCLUDED_RATE}),
}
"""By name, the method that each variant changes, and how."""


def method(case: str, name: str) -> Method:
    """A method of a case by its name."""
    return next(method for method in methods(case) if method.name == name)


def initialised(folder: Path, name: str, initialisation: str) -> list[Trial]:
    """A method with an initialisation, at the setting that was chosen with the default one."""
    setting = chosen(VARIED, method(VARIED, name), folder)
    return trials_of(VARIED, method(VARIED, name), {**setting, "winit": initialisation, **MEASURED}, SEEDS, folder)


def delayed(case: str, folder: Path, fall: float) -> list[Trial]:
    """TVLARS at the rate that was chosen, with the delay factor by which λ times the number of updates is ``fall``."""
    setting = {**chosen(case, method(case, TVLARS), folder), "lmbda": f"{fall / UPDATES[case]:.2g}", **MEASURED}
    return trials_of(case, method(case, TVLARS), setting, SEEDS, folder)


def variant(folder: Path, name: str) -> list[Trial]:
    """One of `VARIANTS`, at the setting that was chosen for the method that it changes."""
    base, changed = VARIANTS[name]
    setting = {**chosen(VARIED, method(VARIED, base), folder), **changed, **MEASURED}
    return trials_of(VARIED, method(VARIED, base), setting, SEEDS, folder)


def trained(case: str, folder: Path, name: str) -> list[Trial]:
    """The runs of a method that are read, with the setting that was chosen."""
    setting = chosen(case, method(case, name), folder)
    return trials_of(case, method(case, name), {**setting, **MEASURED}, SEEDS, folder)


def stages(cases: Sequence[str], folder: Path) -> Iterator[tuple[str, list[Trial]]]:
    """The stages with their runs; those of a stage are known once the stages before it are trained."""
    for case in cases:
        yield f"{case}, settings", searched(case, folder)
        yield f"{case}, seeds", [run for name in METHODS for run in trained(case, folder, name)]
        if case in DELAYED:
            yield f"{case}, delay factors", [run for fall in DELAYS for run in delayed(case, folder, fall)]
        if case == VARIED:
            varied = [(name, way) for name in METHODS for way in INITIALIZATIONS[1:]]
            yield f"{case}, initialisations", [run for name, way in varied for run in initialised(folder, name, way)]
            yield f"{case}, variants", [run for name in VARIANTS for run in variant(folder, name)]
