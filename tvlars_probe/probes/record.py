"""`record`: attach a recorder to any training loop.

::

    with tvlars_probe.record(model, optimizer, "runs/mine") as rec:
        for x, y in batches:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()                        # hooks record
            rec.log(loss=loss, samples=len(x))      # what isn't told is null

With several optimizers, a step of the trace is what they update between two calls of ``rec.log``. Where the loop
doesn't call it, it is one update of each: a new one begins when an optimizer steps that already has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import UserError
from tvlars_probe.exports.live import LiveExports
from tvlars_probe.exports.settings import Export
from tvlars_probe.optimizers.given import optimizers_in, tensors_of
from tvlars_probe.probes import state
from tvlars_probe.probes.budget import ProbeBudget
from tvlars_probe.probes.events.agreement import Agreement
from tvlars_probe.probes.failures import OnProbeError, ProbeFailures
from tvlars_probe.probes.readers.told import count
from tvlars_probe.probes.recorder import Recorder
from tvlars_probe.probes.recording import Recording
from tvlars_probe.probes.rows.finding import Finder
from tvlars_probe.probes.rows.pieces import refuse_joined_samples
from tvlars_probe.probes.rows.reading_plan import Detail, ReadingPlan
from tvlars_probe.probes.session import Session
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.plain_types import shown
from tvlars_probe.traces.run_directory import first_free, new_run_id
from tvlars_probe.traces.schema import ONLY_PHASE
from tvlars_probe.whole_tensors import is_dtensor
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.optim import Optimizer

    from tvlars_probe.exports.exporter import Exporter
    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.probes.failures import Probe


Exists = Literal["error", "new"]
"""What `record` does where a folder holds something already."""


def record(
    model: nn.Module | None,
    optimizer: Optimizer | Sequence[Optimizer],
    path: str | os.PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    detail: Detail = "full",
    every: int = 1,
    spectral_every: int | None = None,
    noise: bool = False,
    probes: Sequence[Probe] = (),
    probe_budget: float | None = None,
    on_probe_error: OnProbeError = "warn",
    findings: Iterable[str] = ("default",),
    on_finding: Callable[[Finding], object] | None = None,
    stop_on: Iterable[str] = (),
    manifest: Manifest | None = None,
    resume: Mapping[str, Any] | None = None,
    distributed: bool | None = None,
    exists: Exists = "error",
    export: Sequence[str | Export | Exporter] = (),
) -> Recorder:
    """Record a training loop of any kind into the run directory ``path``. Use it as a context manager.

    Args:
        model: the model whose parameters name the rows; DDP and compiled wrappers are seen through. Tensors of no
            module, and all of them where it is None, are named ``optimizer<i>.group<j>.<k>``.
        optimizer: one optimizer or several; parameters added later are followed.
        path: a folder that doesn't exist yet (or, with ``resume``, the run to continue).
        config: settings of yours to keep in the manifest.
        total_steps: updates that the run is going to make, if known.
        detail: "full" records all norms, "norms" leaves out update_norm, "none" leaves out the table ``layers``.
        every: n, to fill the table ``layers`` in steps 0, n, 2n, ...
        spectral_every: N, to measure spectral norms of weights and updates in steps 0, N, 2N, ...: a multiple of
            ``every``. In these steps they cost 64 products with each matrix, 64 with its update, and a copy of it.
        noise: whether to estimate the gradient's noise and signal in each recorded step, from the gradients of its
            pieces: micro-batches whose gradients are accumulated, and ranks; fills the table ``noise``. Needs two
            pieces a step at least, of sizes that are known (`Recorder.note_piece`).
        probes: what else is measured before updates, such as `SharpnessProbe`; fills the table ``curvature``.
        probe_budget: highest share of the run's time that all probes may take together, above 0 and at most 1. Early
            steps get more of it, where ``total_steps`` is known: see `tvlars_probe.probes.budget`. What it leaves out
            stands in the manifest's notes. None sets no limit.
        on_probe_error: what happens when a probe or the reading of norms raises. "warn" goes on recording only what
            the loop tells, with a warning and a note in the manifest; "raise" ends the run.
        findings: ids of the rules that look at every flush (docs/guides/findings.md), or "all", "none", or "default":
            those that seldom find something in sound runs.
        on_finding: called with each `Finding` on rank 0, at the flush that finds it. What it raises is told once.
            On several ranks it must not call what every rank calls (``flush``, ``state_dict``): rank 0 would wait for
            the others.
        stop_on: ids of rules, such as ("non_finite",), whose findings end the loop: the next ``rec.log`` leaves the
            ``with`` block on all ranks, the trace is complete, and the run's status is interrupted.
        manifest: a manifest that holds further facts about the run.
        resume: a ``state_dict()`` of a recorder of this run: continue from there, later rows are set aside.
        distributed: with a `torch.distributed` process group, every rank calls ``record``, rank 0 writes and losses
            are averaged over ranks, as the figures of DTensors are summed; False records this process alone.
        exists: what to do where ``path`` holds something already. "error" refuses, "new" takes the first of
            ``path-2``, ``path-3``, ... that is free: so a notebook's cell can run twice. ``rec.path`` tells it.
        export: trackers that are sent the run while it trains: "tensorboard", "wandb", "trackio", "mlflow", or
            `tvlars_probe.Export` for more settings. One that fails or hangs never reaches the loop.

    Returns:
        a recorder, which records from entering its ``with`` block to leaving it.

    Raises:
        RunDirectoryError: on entering, if the folder holds something already or can't be written.
        UserError: a setting is outside its range, no optimizer is given, a tensor can't be read here (spread over
            ranks otherwise than as a DTensor of all of them, without elements), a tracker is unknown or its package
            is missing, or ``resume`` is no recorder's state.
            Where one rank refuses, all do, and nothing has been made.
    """
    ranks = _ranks(model, optimizer, distributed)
    # One rank alone may have a tensor that is refused: the others would wait for it.
    with Agreement(ranks).together():
        _refuse_settings(config, resume, exists)
        plan = ReadingPlan(detail=detail, every=every, spectral_every=spectral_every, noise=noise)
        exports = LiveExports(export, opens=ranks.is_first)
        optimizers = optimizers_in(optimizer, model, ranks=ranks)
        if not any(group["params"] for one in optimizers for group in one.param_groups):
            raise UserError(f"{type(optimizers[0]).__name__} holds no parameter: there is nothing to record")
        for is_asked, refusal in ((plan.spectral_every is not None, _NO_WHOLE_MATRIX), (plan.noise, _NO_HOOKS)):
            if is_asked:
                _refuse_dtensors(optimizers, model, refusal)
        if plan.noise:
            refuse_joined_samples(model, ranks)
        home = Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    if exists == "new":
        with Agreement(ranks).together():
            home = first_free(home) if ranks.is_first else home  # it may be unreadable, for rank 0 alone
        home = ranks.from_first(home)
    with Agreement(ranks).together():
        facts = manifest or Manifest(run_id=new_run_id(home))
        facts.config = dict(config) if config is not None else facts.config
        facts.total_steps = facts.total_steps if total_steps is None else count("total_steps", total_steps)
        begun = resume or {"step": 0, "samples": 0, "tokens": 0, "phase": ONLY_PHASE, "rates": {}}
        session = Session(home, exports)
        recording = Recording(
            model,
            optimizers,
            facts,
            session,
            plan=plan,
            probes=probes,
            failures=ProbeFailures(on_probe_error),
            begun=begun,
            ranks=ranks,
            finder=Finder(findings, on_finding, stop_on),
            budget=ProbeBudget(probe_budget, facts.total_steps),
        )
        return Recorder(home, facts, session, recording, resume=resume)


def exports_named(trackers: Sequence[str], layers: Sequence[str]) -> list[Export]:
    """Exports to trackers, each with the same ``layers``.

    Raises:
        UserError: there is no such tracker.
    """
    return [Export(name, layers=layers) for name in trackers]


def _refuse_settings(config: Mapping[str, Any] | None, resume: Mapping[str, Any] | None, exists: str) -> None:
    if exists not in get_args(Exists):
        raise UserError(f"unknown exists={exists!r} (known: {', '.join(get_args(Exists))})")
    if exists == "new" and resume is not None:
        raise UserError("exists='new' begins another run, and resume= continues the one in path: give one of them")
    if resume is not None:
        wrong = [*state.faults(resume)] if isinstance(resume, Mapping) else [f"it is {shown(resume, 60)}"]
        if wrong:
            raise UserError(f"resume= takes what rec.state_dict() gave: {'; '.join(wrong[:3])}")
    if config is not None and not isinstance(config, Mapping):
        raise UserError(f"config= takes a mapping of settings to their values, got {config!r:.60} (vars() makes one)")


_NO_WHOLE_MATRIX = "spectral_every: {name} is a DTensor, of which no rank holds the whole matrix; leave it out"
_NO_HOOKS = (
    "noise: {name} is a DTensor, as FSDP2 (fully_shard) and tensor parallelism make them, on which gradient hooks "
    "don't see a piece's gradient; leave it out, and measure it in one process by tvlars_probe.gradient_noise"
)


def _refuse_dtensors(optimizers: Sequence[Optimizer], model: nn.Module | None, refusal: str) -> None:
    """Refuse to read what can't be read of tensors that are spread over ranks.

    Raises:
        UserError: a parameter is a DTensor.
    """
    names = {} if model is None else {id(p): name for name, p in unwrap(model).named_parameters()}
    for name, tensor in (named for one in optimizers for named in tensors_of(one, names)):
        if is_dtensor(tensor):
            raise UserError(refusal.format(name=name))


def _ranks(model: Any, optimizer: Any, distributed: bool | None) -> Ranks:
    """The ranks that record together, with the device on which this one computes: that of its first tensor."""
    listed = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    tensors: list[Any] = []
    # Whatever is given instead of an optimizer is refused later, on all ranks, for which a device is needed here.
    with contextlib.suppress(Exception):
        tensors += [p for one in listed for group in one.param_groups for p in group["params"]]
    tensors += model.parameters() if isinstance(model, nn.Module) else ()
    device = next((p.device for p in tensors if isinstance(p, Tensor) and not p.is_meta), torch.device("cpu"))
    return Ranks(device) if distributed is False else Ranks.of_process_group(device)
