"""The same training and the same eigenvalues on 1, 2 and 4 ranks, with uneven shards: do they agree up to rounding?

The runs are those that ``train`` makes: its phases, its launcher, its recorder and its probe of the Hessian. Their
batches of 45 of 187 samples are divided by no number of ranks, and the last one has 7.

What rounding does is measured, not assumed: one rank that sums its batches in pieces of 8 makes the same update in
another order of sums. What it differs by, times `MARGIN`, is what rounding explains.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import InterruptedRunError, UserError
from tvlars_probe.optimizers.registry import OPTIMIZERS, OptimizerConfig
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.configuration.place import PlaceConfig
from tvlars_probe.runners.configuration.recording import RecordConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig
from tvlars_probe.runners.configuration.training import TrainConfig
from tvlars_probe.runners.launching.places import Placement
from tvlars_probe.runners.launching.processes import launch
from tvlars_probe.runners.launching.torchrun import launched_by_torchrun
from tvlars_probe.runners.phases.running import run_phases
from tvlars_probe.runners.planning import Job, plan_run
from tvlars_probe.traces.reader import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvlars_probe.collectives import Ranks

WORLD_SIZES = (1, 2, 4)
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
SAMPLES, BATCH, PIECE = 187, 45, 8

MARGIN = 100.0
"""How many times another order of sums on one rank two numbers of ranks may differ by."""

QUANTITIES = ("weights", "losses", "eigenvalues")


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far a run on several ranks is from that on one.

    Attributes:
        precision: "float64" or "float32".
        ranks: number of ranks.
        quantity: "weights": the largest difference of an element of the last weights, relative to its tensor's largest
            element; "losses": that of a step's loss, relative to it; "eigenvalues": that of the Hessian's top
            eigenvalue in a step, relative to it.
        difference: that figure; NaN or infinite where a run's own figures are.
        rounding: the same figure between one rank and one rank that sums in another order.
        allowed: what rounding explains: `MARGIN` times that, or times the unit roundoff where that is more.
    """

    precision: str
    ranks: int
    quantity: str
    difference: float
    rounding: float
    allowed: float

    @property
    def is_explained(self) -> bool:
        """Whether rounding explains the difference."""
        return self.difference <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was compared.

    Attributes:
        optimizer: what trained.
        shares: samples of each rank in a whole batch, and in the last one, by number of ranks.
        deviations: one entry per precision, number of ranks and quantity.
        seconds: how long it took.
    """

    optimizer: str
    shares: dict[int, tuple[list[int], list[int]]]
    deviations: tuple[Deviation, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains all differences."""
        return all(deviation.is_explained for deviation in self.deviations)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        entries = [{**dataclasses.asdict(one), "is_explained": one.is_explained} for one in self.deviations]
        return {"holds": self.holds, **dataclasses.asdict(self), "deviations": entries}


def certify(optimizer: str = "lars", *, report: Callable[[str], None] = lambda _: None) -> Certificate:
    """Train and measure on 1, 2 and 4 ranks of this machine's CPU, and compare.

    Args:
        optimizer: what trains: a name that ``train`` knows.
        report: called with a line about what is being done.

    Raises:
        UserError: torchrun has started this process: certify starts its own ranks.
        RunFailedError: a rank failed.
    """
    if launched_by_torchrun():
        raise UserError("certify starts its own ranks: call it without torchrun")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tvlars-probe-certify-") as folder:
        found = {n: _outcomes(optimizer, n, Path(folder), report) for n in WORLD_SIZES}
        shares = {n: (_shares(BATCH, n), _shares(SAMPLES % BATCH, n)) for n in WORLD_SIZES}
    deviations = []
    for precision, dtype in PRECISIONS.items():
        one, otherwise = found[1][precision], found[1][f"{precision} in pieces"]
        for ranks in WORLD_SIZES[1:]:
            for quantity in QUANTITIES:
                rounding = _difference(one[quantity], otherwise[quantity])
                deviations.append(
                    Deviation(
                        precision=precision,
                        ranks=ranks,
                        quantity=quantity,
                        difference=_difference(one[quantity], found[ranks][precision][quantity]),
                        rounding=rounding,
                        allowed=MARGIN * max(rounding, torch.finfo(dtype).eps / 2),
                    )
                )
    return Certificate(
        optimizer=optimizer, shares=shares, deviations=tuple(deviations), seconds=time.monotonic() - begin
    )


def _shares(samples: int, ranks: int) -> list[int]:
    """Samples of each rank, as `tvlars_probe.data.batches` cuts a batch."""
    return [len(part) for part in torch.arange(samples).tensor_split(ranks)]


def _config(optimizer: str, precision: str, ranks: int, micro_batch: int | None) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(name="digits", limit=SAMPLES),
        optimizer=OptimizerConfig(name=optimizer, lr=min(1.0, OPTIMIZERS[optimizer].default_lr)),
        place=PlaceConfig(devices=("cpu",), nproc=ranks, threads=1),
        recording=RecordConfig(checkpoint_every=0, train_eval_samples=0, findings=("none",)),
        sharpness=SharpnessConfig(every="4", operators=("hessian",), samples=61),
        batch_size=BATCH,
        micro_batch=micro_batch,
        epochs=1,
        precision=precision,
    )


def _outcomes(
    optimizer: str, ranks: int, folder: Path, report: Callable[[str], None]
) -> dict[str, dict[str, list[torch.Tensor]]]:
    """Train with this number of ranks, and read what is compared, by precision."""
    report(f"{ranks} rank{'' if ranks == 1 else 's'}")
    asked: dict[str, tuple[str, int | None]] = {precision: (precision, None) for precision in PRECISIONS}
    if ranks == 1:
        asked |= {f"{precision} in pieces": (precision, PIECE) for precision in PRECISIONS}
    jobs = {
        name: _job(_config(optimizer, precision, ranks, piece), folder / f"{ranks} {name}", ranks)
        for name, (precision, piece) in asked.items()
    }
    threads = torch.get_num_threads()
    try:
        number = launch(_train_all, list(jobs.values()), Placement("cpu", nproc=ranks), PlaceConfig(threads=1))
    finally:
        torch.set_num_threads(threads)
    if number:
        raise InterruptedRunError(number, "Interrupted: nothing is kept")
    return {name: _read(job.path) for name, job in jobs.items()}


def _job(config: TrainConfig, path: Path, ranks: int) -> Job:
    job = plan_run(config, path, data=config.data.load(), world_size=ranks, quiet=True)
    assert isinstance(job, Job)  # the folder is new
    return job


def _train_all(ranks: Ranks, jobs: Sequence[Job]) -> int | None:
    """Train one run after another. At the top level of a module: the ranks import it."""
    for job in jobs:
        number = run_phases(ranks, job)
        if number:
            return number
    return None


def _read(path: Path) -> dict[str, list[torch.Tensor]]:
    """What is compared of a run: the last weights, every step's loss, and the top eigenvalues."""
    trace = Trace(path)
    last = [*checkpoints.list_checkpoints(path).values()][-1]
    rows = trace.curvature(["step", "measure", "rank", "value"])
    top = rows[(rows["measure"].astype(str) == "eigenvalue") & (rows["rank"] == 1)]
    return {
        "weights": [value.double() for value in checkpoints.load(last)["model"].values() if value.is_floating_point()],
        "losses": [torch.tensor([value], dtype=torch.float64) for value in trace.steps(["loss"])["loss"].tolist()],
        "eigenvalues": [torch.tensor([value], dtype=torch.float64) for value in top["value"].tolist()],
    }


def _difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """The largest difference of an element, relative to its tensor's largest; NaN where there is nothing to compare."""
    if len(one) != len(other) or not one:
        return math.nan
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(one, other, strict=True))
