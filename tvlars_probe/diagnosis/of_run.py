"""What was wrong with a recorded run, found in its trace. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np

from tvlars_probe.analyses.rate_courses import AT_PEAK
from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.diagnosis.loss_scale import accumulation_shows, epoch_shows
from tvlars_probe.diagnosis.results import Check, Diagnosis, Observed
from tvlars_probe.errors import TraceError
from tvlars_probe.findings.inspector import Inspector
from tvlars_probe.findings.window import Tensors, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.grid import LayerGrid
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.traces.reader import Trace

    Floats = NDArray[np.float64]

FIGURES = ("weight_norm", "grad_norm", "update_norm", "trust_ratio", "direction_norm", "phi")
COLUMNS = (*FIGURES, "lr")
"""Columns of the table ``layers`` that are read."""

WINDOW = 512
"""Recorded steps that the rules are shown at once."""

STEP_COLUMNS = ("step", "epoch", "loss", "lr", "phi")
"""Columns of the table ``steps`` that are read."""

_OF_RULES = {
    "finite": (
        "non_finite",
        "loss, weights and gradients are finite in every step",
        "a lower rate, a warm-up, or gradient clipping; what went wrong before it stands above it",
    ),
    "phi_alive": (
        "phi_dead",
        "φ stays above a ten-thousandth of its highest value",
        "a smaller lmbda, or a gamma_min above 0 (train: --lmbda, --gamma-min); with an lmbda of {tenth:.2g} φ falls "
        "to a tenth by the end of as many steps",
    ),
    "ratios_alive": (
        "ratio_vanished",
        "no trust ratio falls to a millionth of its own median",
        "see what became of ‖w‖ and ‖g‖ of that tensor: `tvlars-probe chart layers`",
    ),
    "zeros_held": (
        "full_rate_from_zero",
        "no tensor that is zero moves at the full rate while trust ratios hold the others back",
        "initialise the tensor like the others, warm up, or leave it out of the adaptation with a rate of its own",
    ),
    "weights_kept": (
        "weight_overwritten",
        "no update is as large as the weight that it changes",
        "a lower rate for the group of the first such tensor, a warm-up, or gradient clipping",
    ),
    "excluded_kept": (
        "excluded_overwritten",
        "no tensor without a trust ratio is replaced by one update",
        "a rate of their own for these tensors (--excluded-lr), or adapt them, too",
    ),
}
"""Checks that are rules of findings: the rule, what a sound run does, the remedy."""


def diagnose_run(source: Source) -> Diagnosis:
    """Ask one phase of a run's trace what was wrong with it.

    Rules of `tvlars_probe.findings` are applied to all recorded steps, whichever were applied in training; and the
    rate's peak, the warm-up's effect and the loss's scale are looked at, which no rule sees.

    Raises:
        TraceError: the run has made steps, and none is on record.
    """
    grid, steps = source.layers(COLUMNS), source.steps(STEP_COLUMNS)
    if not len(steps):
        _refuse_lost(source.trace)
    return diagnose(grid, steps, source.facts, micro_batches=_micro_batches(source))


def _refuse_lost(trace: Trace) -> None:
    """Refuse a run whose steps are lost; not one that has made none, nor one of which another phase has some."""
    segments = [segment for segment in trace.manifest.segments if isinstance(segment, dict)]
    last = max((step for segment in segments if isinstance(step := segment.get("last_step"), int)), default=None)
    if last is not None and not len(trace.steps(["step"])):
        path = shlex.quote(str(trace.path))
        made = f"{path} has made {counted(last + 1, 'step')}"
        raise TraceError(f"{made}, and none is on record: `tvlars-probe check {path}` tells more")


def _micro_batches(source: Source) -> int | None:
    """Pieces in which a rank computes its batch, by the manifest or by the table ``noise``; None if neither tells."""
    manifest = source.trace.manifest
    if manifest.micro_batches is not None or source.lacks("noise"):
        return manifest.micro_batches
    rows = source.noise(("source", "pieces"))
    pieces = rows.loc[rows["source"].astype(str) == "training", "pieces"].dropna()
    return max(int(pieces.median()) // (manifest.world_size or 1), 1) if len(pieces) else None


def diagnose(grid: LayerGrid, steps: pd.DataFrame, facts: RunFacts, *, micro_batches: int | None = None) -> Diagnosis:
    """The same of frames.

    Args:
        grid: the columns `COLUMNS` of the table ``layers``.
        steps: the columns `STEP_COLUMNS` of the table ``steps``.
        facts: what the run's manifest tells.
        micro_batches: pieces in which a rank computes its batch, where that is known.
    """
    tensors = _tensors(grid, facts)
    checks = _of_rules(grid, steps, tensors)
    checks += [
        _check(
            "peak_reached",
            "the highest rate on record against the peak that the manifest tells",
            "the rate reaches its peak",
            "let the schedule count updates, as it is stepped, and let the warm-up end before the run does",
            _peak_reached(steps, facts),
        ),
        _check(
            "warmup_worked",
            "rates and effective rates, lr × trust ratio, in the warm-up against those at the peak",
            "a warm-up lowers the first rates, and the steps that tensors take by them",
            "check that the schedule is stepped and that its length counts updates; where the trust ratio is clipped "
            "by the rate (LARC), a warm-up can do nothing: switch the clip off",
            _warmup_worked(grid, steps, facts, tensors),
        ),
        _check(
            "loss_scale",
            "losses on both sides of each epoch's end, and the first loss against that of guessing",
            "the loss is the mean over the batch in every step",
            "divide by the number of samples of the batch, once: not by the count of all steps so far, nor again by "
            "the number of micro-batches",
            _loss_scale(steps, facts, micro_batches),
        ),
    ]
    place = [check.name for check in checks].index("finite")
    if facts.finding is not None and checks[place].answer != "wrong":
        # A loss that was told and isn't a number is null in the table, as one that wasn't told is.
        came = f"the manifest tells of a loss or a norm that isn't finite in step {facts.finding.get('step')}"
        checks[place] = dataclasses.replace(checks[place], answer="wrong", came=came, remedy=_OF_RULES["finite"][2])
    about = f"{facts.method}, {facts.phase}, {facts.status}, {counted(len(steps), 'step')}"
    return Diagnosis(subject=facts.name, description=(about + facts.sampling,), checks=tuple(checks))


def _of_rules(grid: LayerGrid, steps: pd.DataFrame, tensors: Tensors) -> list[Check]:
    """The checks that are rules of findings. What went wrong first stands first: it may be the cause of the others."""
    found = _findings(grid, steps, tensors)
    updates = bool(np.isfinite(grid["update_norm"]).any())
    has = {
        "finite": len(grid.steps) > 0,
        "phi_alive": bool(np.isfinite(grid["phi"]).any()),
        "ratios_alive": len(tensors.adapted_at) > 0,
        "zeros_held": len(tensors.adapted_at) > 0,
        "weights_kept": updates and len(tensors.weights_at) > 0,
        "excluded_kept": updates and len(tensors.excluded_at) > 0,
    }
    no_updates = "no norms of updates are on record"
    lacking = {
        "finite": "no layers are on record",
        "phi_alive": "the optimizer has no φ",
        "ratios_alive": "no trust ratio is on record",
        "zeros_held": "no trust ratio is on record",
        "weights_kept": "no tensor has two dimensions" if updates else no_updates,
        "excluded_kept": "the optimizer leaves no tensor out" if updates else no_updates,
    }
    # φ falls from 1/(α + 1) to some exp(−λt).
    tenth = math.log(10) / max(len(steps) and int(steps["step"].max()) + 1, 1)
    ordered = sorted(_OF_RULES.items(), key=lambda item: min((f.step for f in found.get(item[1][0], [])), default=0))
    return [
        _check(name, "all recorded steps", expected, remedy.format(tenth=tenth), _of_findings(found.get(rule, [])))
        if has[name]
        else _check(name, "all recorded steps", expected, "", Observed("not applicable", lacking[name]))
        for name, (rule, expected, remedy) in ordered
    ]


def _check(name: str, tried: str, expected: str, remedy: str, observed: Observed) -> Check:
    return Check(
        name=name,
        tried=tried,
        expected=expected,
        came=observed.came,
        answer=observed.answer,
        remedy=remedy if observed.answer == "wrong" else "",
    )


def _tensors(grid: LayerGrid, facts: RunFacts) -> Tensors:
    shapes = dict(zip(facts.parameters["name"], facts.parameters["shape"], strict=True))
    dims = [len(shape) if isinstance(shape := shapes.get(name), list | tuple) else 2 for name in grid.parameters]
    # The trace doesn't tell the weights' type: the one rule that needs it isn't applied here.
    return Tensors.of(grid.parameters, facts.descriptions_of(grid.parameters), dims, [math.nan] * len(dims))


def _findings(grid: LayerGrid, steps: pd.DataFrame, tensors: Tensors) -> dict[str, list[Finding]]:
    """What the rules find in the recorded steps, by rule. Steps are told as they are numbered in the trace."""
    if not len(grid.steps):
        return {}
    told = steps.drop_duplicates("step").set_index("step").reindex(grid.steps)
    loss, phi = told["loss"].to_numpy(np.float64), told["phi"].to_numpy(np.float64)
    inspector = Inspector([rule for rule, _, _ in _OF_RULES.values()])
    by_rule: dict[str, list[Finding]] = {}
    # A few steps at a time, as in training: rules compute several arrays of the window's size.
    for begin in range(0, len(grid.steps), WINDOW):
        some = slice(begin, begin + WINDOW)
        window = Window(
            first_step=begin,
            losses=loss[some],
            told=~np.isnan(loss[some]),
            grad_norms=np.full(len(loss[some]), np.nan),
            before_clipping=np.zeros(len(loss[some]), dtype=bool),
            phi=phi[some],
            active=~np.isnan(grid["lr"][some]),
            lr=grid["lr"][some].astype(np.float64),
            figures={name: grid[name][some].astype(np.float64) for name in FIGURES},
            tensors=tensors,
        )
        for finding in inspector.inspect(window):
            # In windows steps are counted, since the recorded ones may have holes between them.
            at = dataclasses.replace(finding, step=int(grid.steps[finding.step]))
            by_rule.setdefault(finding.rule, []).append(at)
    return by_rule


def _of_findings(found: list[Finding]) -> Observed:
    if not found:
        return Observed("right", "nothing was found")
    more = "" if len(found) == 1 else f" (and in {counted(len(found) - 1, 'later step')})"
    return Observed("wrong", f"from step {found[0].step} on: {found[0].text}{more}")


def _peak_reached(steps: pd.DataFrame, facts: RunFacts) -> Observed:
    rates = steps["lr"].dropna().to_numpy(np.float64)
    if not len(rates) or facts.peak_lr is None or not facts.peak_lr > 0:
        return Observed("not applicable", "the run tells no peak" if len(rates) else "no rate is on record")
    highest = float(rates.max())
    if highest >= AT_PEAK * facts.peak_lr:
        return Observed("right", f"{highest:.4g} of {facts.peak_lr:.4g}")
    came = f"the rate got to {highest:.4g} of {facts.peak_lr:.4g}"
    if facts.status != "completed":
        return Observed("can't tell", f"{came}, and the run is {facts.status}: it may have ended before")
    return Observed("wrong", came)


_WARMUPS = {
    "warmup",
    "warmup_steps",
    "warmup_epochs",
    "warmup_iters",
    "warmup_updates",
    "warmup_ratio",
    "num_warmup_steps",
}
"""Names under which configurations hold the length of a warm-up."""


def _told_warmup(facts: RunFacts) -> str | None:
    """What asks for a warm-up of this phase: a setting with its value, or the schedule; None where nothing does."""
    if facts.first_step or facts.branch is not None:
        return None  # the configuration is of the first phase, and a branch begins after its parent's warm-up
    settings: list[tuple[str, Mapping[str, Any]]] = [("", facts.config)]
    told = list[tuple[str, float]]()
    for prefix, held in settings:
        for name, value in held.items():
            if isinstance(value, dict):
                settings.append((f"{prefix}{name}.", value))
            elif str(name) in _WARMUPS and isinstance(value, int | float) and not isinstance(value, bool):
                told.append((f"{prefix}{name}", value))
    if told:  # a length may be told in one of several units, with 0 for the others
        return next((f"{name} {value:g}" for name, value in told if value > 0), None)
    return "the schedule lars-warm" if facts.schedule == "lars-warm" else None


def _warmup_worked(grid: LayerGrid, steps: pd.DataFrame, facts: RunFacts, tensors: Tensors) -> Observed:
    rows = steps.dropna(subset=["lr"])
    rates, at = rows["lr"].to_numpy(np.float64), rows["step"].to_numpy(np.int64)
    if len(rates) < 2 or not rates.max() > 0:
        return Observed("not applicable", "no rates are on record")
    top = int((rates >= AT_PEAK * rates.max()).argmax())
    if top == 0:
        told = _told_warmup(facts)
        if told is None:
            return Observed("not applicable", "there was no warm-up")
        return Observed("wrong", f"{told} asks for a warm-up, and the first rate is the highest, {rates[0]:.4g}")
    length = counted(int(at[top] - at[0]), "update")
    still = _unmoved(grid, tensors, int(at[0]), int(at[top]))
    # Of the warm-up's first and last half: a rate that hardly rises can't be told from one that is cancelled.
    risen = rates[top // 2 : top + 1].mean() > 1.5 * rates[: top // 2 + 1].mean()
    if risen and still:
        return Observed("wrong", f"the rate rose over {length}, but lr × trust ratio didn't: {some_of(still)}")
    return Observed("right", f"the rate rose to {rates.max():.4g} over {length}")


def _unmoved(grid: LayerGrid, tensors: Tensors, first: int, top: int) -> list[str]:
    """The adapted tensors, if lr × trust ratio of each is in the warm-up's first half what it is at the peak.

    Args:
        grid: the layers.
        tensors: what is known of them.
        first: the first step of the warm-up.
        top: the step in which the rate is at its peak.
    """
    with np.errstate(all="ignore"):
        effective = (grid["lr"].astype(np.float64) * grid["trust_ratio"])[:, tensors.adapted_at]
    half, quarter = max((top - first) // 2, 1), max((top - first) // 4, 1)
    early = effective[(grid.steps > first) & (grid.steps <= first + half)]
    late = effective[(grid.steps >= top) & (grid.steps < top + quarter)]
    seen = np.isfinite(early).all(axis=0) & np.isfinite(late).all(axis=0)
    if not (len(early) and len(late) and seen.any()):
        return []
    share = np.median(early[:, seen], axis=0) / np.maximum(np.median(late[:, seen], axis=0), 1e-300)
    return [tensors.adapted_names[k] for k in np.flatnonzero(seen).tolist()] if (np.abs(share - 1) < 0.02).all() else []


def _loss_scale(steps: pd.DataFrame, facts: RunFacts, micro_batches: int | None) -> Observed:
    rows = steps.dropna(subset=["loss"])
    if not len(rows):
        return Observed("not applicable", "no loss is on record")
    by_epoch = epoch_shows(rows["loss"].to_numpy(np.float64), rows["epoch"].to_numpy(np.float64))
    by_pieces = accumulation_shows(float(rows["loss"].iloc[0]), _classes(facts), micro_batches)
    for one in (by_epoch, by_pieces):
        if one.answer == "wrong":
            return one
    # What one of them leaves open is open, whatever the other shows.
    both = {by_epoch.answer, by_pieces.answer} == {"right"}
    return Observed("right" if both else "can't tell", f"{by_pieces.came}; {by_epoch.came}")


def _classes(facts: RunFacts) -> int | None:
    """How many classes a classification has: the length of the model's last bias. None where that isn't one."""
    if facts.phase not in ("train", "linear") or not len(facts.parameters):
        return None
    shape = facts.parameters["shape"].iloc[-1]
    return int(shape[0]) if isinstance(shape, list | tuple) and len(shape) == 1 and shape[0] > 1 else None
