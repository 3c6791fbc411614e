"""The kinds of chart by name: what each shows, which runs have the data for it, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses.grid import norm_ratio
from tvlars_probe.analyses.loading import epochs_of, facts_of, grid_of, steps_of
from tvlars_probe.errors import TraceError, UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of chart.

    Attributes:
        about: what it shows.
        needs: table that it is drawn from.
        several: whether it shows several runs in one picture.
        draw: makes it from runs (`tvlars_probe.traces.reader.Run`), one where not ``several``.
        counts_all: whether runs without the data still count, as those that diverged do in a comparison.
    """

    about: str
    needs: str
    several: bool
    draw: Callable[[Sequence[Any]], Any]
    counts_all: bool = False


def _heat(quantity: str) -> Callable[[Sequence[Any]], Any]:
    def draw(runs: Sequence[Any]) -> Any:
        from tvlars_probe.charts.layers import heat_map

        facts = facts_of(runs[0])
        columns = {"trust_ratio": ["trust_ratio"], "lnr": ["weight_norm", "grad_norm"], "grad_norm": ["grad_norm"]}
        grid = grid_of(runs[0], facts, columns[quantity])
        values = norm_ratio(grid) if quantity == "lnr" else grid[quantity]
        return heat_map(quantity, values, grid.steps, grid.parameters, facts)

    return draw


def _rates(runs: Sequence[Any]) -> Any:
    from tvlars_probe.analyses.rates import COLUMNS, decompose
    from tvlars_probe.charts.layers import decomposition

    facts = facts_of(runs[0])
    return decomposition(decompose(grid_of(runs[0], facts, COLUMNS), facts))


def _explosions(runs: Sequence[Any]) -> Any:
    from tvlars_probe.analyses.warmup_runs import warmup_of
    from tvlars_probe.charts.explosions import explosion_timeline

    return explosion_timeline(warmup_of(runs[0])[0])


def _warmup(runs: Sequence[Any]) -> Any:
    from tvlars_probe.analyses.warmup_pairs import pair_warmups
    from tvlars_probe.analyses.warmup_runs import warmup_of
    from tvlars_probe.charts.comparisons import warmup_pairs_chart

    result = pair_warmups([warmup_of(run) for run in runs])
    if not len(result.pairs):
        raise UserError(f"chart warmup: {result.verdict.reason}")
    return warmup_pairs_chart(result)


def _loss(runs: Sequence[Any]) -> Any:
    from tvlars_probe.charts.curves import loss_bins, loss_curves

    facts = [facts_of(run) for run in runs]
    return loss_curves([(f, loss_bins(steps_of(run, f, ["step", "loss"]))) for run, f in zip(runs, facts, strict=True)])


def _accuracy(runs: Sequence[Any]) -> Any:
    from tvlars_probe.charts.curves import accuracy_curves

    facts = [facts_of(run) for run in runs]
    return accuracy_curves([(f, epochs_of(run, ["epoch", "test_acc1"])) for run, f in zip(runs, facts, strict=True)])


def _minimizers(runs: Sequence[Any]) -> list[Any]:
    from tvlars_probe.analyses.minimizer_runs import minimizer_of

    return [minimizer_of(run) for run in runs]


def _sharpness(runs: Sequence[Any]) -> Any:
    from tvlars_probe.charts.sharpness import sharpness_curves

    results = [r for r in _minimizers(runs) if len(r.curves)]
    if not results:
        raise TraceError(f"no eigenvalue of the whole model is on record in {runs[0].path}")
    return sharpness_curves(results)


def _density(runs: Sequence[Any]) -> Any:
    from tvlars_probe.charts.sharpness import spectral_density

    results = [r for r in _minimizers(runs) if len(r.spectrum)]
    return spectral_density(results)


def _blocks(runs: Sequence[Any]) -> Any:
    from tvlars_probe.charts.sharpness import layer_blocks

    result = _minimizers(runs)[0]
    if not len(result.blocks):
        raise TraceError(f"{runs[0].path} has no sharpness of single layers: run tvlars-probe sharpness --per-layer")
    return layer_blocks(result)


def _gap(runs: Sequence[Any]) -> Any:
    from tvlars_probe.analyses.correlation import correlate
    from tvlars_probe.charts.comparisons import gap_chart

    results = [
        (r, epochs_of(run, ["step", "train_eval_acc1", "test_acc1"]))
        for run, r in zip(runs, _minimizers(runs), strict=True)
    ]
    return gap_chart(correlate(results))


def _compare(runs: Sequence[Any]) -> Any:
    from tvlars_probe.analyses.comparison import compare, epoch_columns, run_row

    rows, needed = [], epoch_columns("test_acc1")
    for run in runs:
        facts = facts_of(run)
        rows.append(run_row(facts, epochs_of(run, needed), metric="test_acc1", target=None))
    return compare(rows)


def _comparison(runs: Sequence[Any]) -> Any:
    from tvlars_probe.charts.comparisons import comparison_chart

    return comparison_chart(_compare(runs))


def _rate_sensitivity(runs: Sequence[Any]) -> Any:
    from tvlars_probe.charts.comparisons import rate_sensitivity

    return rate_sensitivity(_compare(runs))


def _landscape(name: str) -> Callable[[Sequence[Any]], Any]:
    def draw(runs: Sequence[Any]) -> Any:
        from tvlars_probe.analyses.landscape import COLUMNS, analyse_landscape
        from tvlars_probe.charts import landscape

        rows = runs[0].frame("landscape", COLUMNS)
        flat = rows["beta"].isna()
        rows = rows[~flat] if name == "landscape_map" else rows
        if not len(rows):
            raise TraceError(f"{runs[0].path} has no plane: run tvlars-probe landscape --dimensions 2")
        return getattr(landscape, name)(analyse_landscape(rows, facts_of(runs[0])))

    return draw


KINDS: dict[str, Kind] = {
    "loss": Kind("training loss by step, runs together", "steps", True, _loss),
    "accuracy": Kind("test accuracy by epoch, runs together", "epochs", True, _accuracy),
    "trust-ratio": Kind("layer × step heat map of the trust ratio", "layers", False, _heat("trust_ratio")),
    "lnr": Kind("layer × step heat map of ‖w‖/‖g‖", "layers", False, _heat("lnr")),
    "grad-norm": Kind("layer × step heat map of ‖g‖", "layers", False, _heat("grad_norm")),
    "rates": Kind("effective rates and the factors that they are made of", "layers", False, _rates),
    "explosions": Kind("which layers exploded when, and until when", "layers", False, _explosions),
    "warmup": Kind("accuracy with and without warm-up, in pairs of runs", "layers", True, _warmup),
    "sharpness": Kind("raw, relative and effective sharpness by step", "curvature", True, _sharpness),
    "density": Kind("spectral density of the Hessian", "spectrum", True, _density),
    "blocks": Kind("sharpness of each layer's block", "curvature", False, _blocks),
    "gap": Kind("end sharpness against the generalisation gap, over runs", "curvature", True, _gap),
    "comparison": Kind("settings side by side, with intervals over seeds", "epochs", True, _comparison, True),
    "learning-rates": Kind("accuracy against the peak learning rate", "epochs", True, _rate_sensitivity, True),
    "landscape": Kind("loss along a direction, or between two runs", "landscape", False, _landscape("landscape_line")),
    "landscape-map": Kind("loss over the plane of two directions", "landscape", False, _landscape("landscape_map")),
}


def kind(name: str) -> Kind:
    """The kind of that name."""
    if name not in KINDS:
        raise unknown("kind of chart", name, KINDS)
    return KINDS[name]


def lacking(name: str, run: Any) -> str | None:
    """Why this run can't be shown so; None if it can."""
    if not len(run.frame(KINDS[name].needs, ["step"])):
        return _REMEDIES[KINDS[name].needs]
    return None


_REMEDIES = {
    "layers": "no layers are on record (train --record full)",
    "steps": "no step is on record yet",
    "epochs": "no epoch is finished yet",
    "curvature": "no sharpness is on record (train --sharpness-every, or tvlars-probe sharpness)",
    "spectrum": "no density is on record (tvlars-probe sharpness --density)",
    "landscape": "no slice is on record (tvlars-probe landscape)",
}


def left_out(name: str, runs: Sequence[Any]) -> list[tuple[Any, str]]:
    """The runs that have nothing to show in a chart, and why."""
    return [(run, reason) for run in runs if (reason := lacking(name, run)) is not None]


def draw(name: str, runs: Sequence[Any]) -> Any:
    """Draw a kind from those of the runs that have the data for it; `left_out` names the others.

    Raises:
        UserError: no run has the data, or the kind shows one run and several are given.
    """
    chosen = kind(name)
    if not chosen.several and len(runs) != 1:
        raise UserError(f"chart {name} shows one run, {len(runs)} were given: draw it for each")
    without = left_out(name, runs)
    if len(without) == len(runs):
        run, reason = without[0]
        raise TraceError(f"{run.path} can't be drawn as {name}: {reason}")
    lacks = [] if chosen.counts_all else [run for run, _ in without]
    return chosen.draw([run for run in runs if not any(run is one for one in lacks)])
