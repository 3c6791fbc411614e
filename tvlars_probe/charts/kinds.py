"""The kinds of chart by name: what each shows, which runs have the data for it, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses import of_runs
from tvlars_probe.analyses.layer_figures import layer_figure
from tvlars_probe.analyses.wording import some_of
from tvlars_probe.errors import NothingToShowError, TraceError, UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import altair as alt

    from tvlars_probe.analyses.source import Source

    Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart
    Draw = Callable[[Sequence[Source]], Chart]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of chart.

    Attributes:
        about: what it shows, for the list of kinds.
        needs: table that it is drawn from. A run without a row in it has nothing to show.
        columns: columns of that table, each of which must hold a value.
        several: whether it shows several runs in one picture.
        draw: draws it from runs; from one run unless ``several``.
        check: raises where the chart would be empty, as ``draw`` does, which is called instead where there is none.
        counts_all: whether runs without the data are handed to ``draw``, too: a comparison counts those that diverged.
    """

    about: str
    needs: str
    several: bool
    draw: Draw
    columns: tuple[str, ...] = ("step",)
    check: Callable[[Sequence[Source]], Any] | None = None
    counts_all: bool = False


# altair and the functions that draw are imported when a chart is drawn: a list of the kinds does without them.


def _heat(quantity: str) -> Draw:
    """Draws the heat map of a quantity."""

    def draw(sources: Sequence[Source]) -> Chart:
        from tvlars_probe.charts.layers import heat_map

        grid, values = layer_figure(quantity, sources[0])
        return heat_map(quantity, values, grid.steps, grid.parameters, sources[0].facts)

    return draw


def _any_of(quantity: str) -> Callable[[Sequence[Source]], None]:
    """Refuses runs whose heat map of a quantity would be empty; drawing its cells takes longer."""

    def check(sources: Sequence[Source]) -> None:
        from tvlars_probe.charts.layers import refuse_nothing

        refuse_nothing(quantity, layer_figure(quantity, sources[0])[1], sources[0].facts)

    return check


def _rates(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.analyses.rates import COLUMNS, decompose
    from tvlars_probe.charts.layers import decomposition

    return decomposition(decompose(sources[0].layers(COLUMNS), sources[0].facts))


def _explosions(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.explosions import explosion_timeline

    return explosion_timeline(of_runs.warmup_of(sources[0])[0])


def _warmup(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.warmup_pairs import warmup_pairs_chart

    return warmup_pairs_chart(of_runs.warmup_pairs_of(sources)[0])


def _loss(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.curves import loss_bins, loss_curves

    return loss_curves([(source.facts, loss_bins(source.steps(["step", "loss"]))) for source in sources])


def _accuracy(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.curves import accuracy_curves

    return accuracy_curves([(source.facts, source.epochs(["epoch", "test_acc1"])) for source in sources])


def _sharpness(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.sharpness import sharpness_curves

    # A run with rows in ``curvature`` may have traces, or eigenvalues of single layers, alone.
    results = [r for r in map(of_runs.minimizer_of, sources) if len(r.curves)]
    if not results:
        raise NothingToShowError(f"no eigenvalue of the whole model is on record ({_SHARPNESS})")
    return sharpness_curves(results)


def _density(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.sharpness import spectral_density

    results = [r for r in map(of_runs.minimizer_of, sources) if len(r.spectrum)]
    if not results:
        raise NothingToShowError(f"no density of the whole model is on record ({_DENSITY})")
    return spectral_density(results)


def _blocks(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.blocks import layer_blocks

    return layer_blocks(of_runs.minimizer_of(sources[0]))


def _gap(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.comparisons import gap_chart

    return gap_chart(of_runs.correlation_of(sources)[0])


def _comparison(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.comparisons import comparison_chart

    return comparison_chart(of_runs.comparison_of(sources))


def _rate_sensitivity(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.comparisons import rate_sensitivity

    return rate_sensitivity(of_runs.comparison_of(sources))


def _landscape_line(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.landscape import landscape_line

    return landscape_line(of_runs.landscape_of(sources[0]))


def _landscape_map(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.analyses.landscape import COLUMNS
    from tvlars_probe.charts.landscape import landscape_map

    rows = sources[0].landscape(COLUMNS)
    # The last slice on record may be a line: it is the last plane that is drawn.
    planes = rows[rows["beta"].notna()]
    if not len(planes):
        raise NothingToShowError("no plane is on record (tvlars-probe landscape --dimensions 2)")
    return landscape_map(of_runs.landscape_of(sources[0], planes))


def _noise(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.noise import noise_curve

    result = of_runs.noise_scale_of(sources[0], tensors=False)
    if not len(result.curve):
        raise NothingToShowError(f"no noise of the whole model is on record ({_NOISE})")
    return noise_curve(result)


def _noise_of_layers(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.charts.noise import noise_map

    chart: Chart = noise_map(of_runs.noise_scale_of(sources[0]))
    return chart


def _batch_size(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.analyses.batches.batch_size import batch_size_of
    from tvlars_probe.charts.batch_sizes import answers_chart

    return answers_chart(batch_size_of(sources))


def _time_to_target(sources: Sequence[Source]) -> Chart:
    from tvlars_probe.analyses.batches.time_to_target import time_to_target
    from tvlars_probe.charts.batch_sizes import time_chart

    try:
        return time_chart(time_to_target(sources))
    except UserError as error:
        raise NothingToShowError(str(error)) from None


def _of_layers(what: str, quantity: str, *columns: str) -> Kind:
    """The heat map of a quantity of the layers."""
    about = f"layer × step heat map of {what}"
    return Kind(about, "layers", False, _heat(quantity), columns or ("step",), check=_any_of(quantity))


KINDS: dict[str, Kind] = {
    "loss": Kind("training loss by step, runs together", "steps", True, _loss, ("loss",)),
    "accuracy": Kind("test accuracy by epoch, runs together", "epochs", True, _accuracy, ("test_acc1",)),
    "trust-ratio": _of_layers("the trust ratio", "trust_ratio", "trust_ratio"),
    "lnr": _of_layers("‖w‖/‖g‖", "lnr"),
    "grad-norm": _of_layers("‖g‖", "grad_norm"),
    "relative-update": _of_layers("the relative update ‖Δw‖/‖w‖", "relative_update", "update_norm"),
    "update-rms": _of_layers("the root mean square of the update", "update_rms", "update_norm"),
    "spectral-norm": _of_layers("the weights' spectral norm", "weight_spectral_norm", "weight_spectral_norm"),
    "update-spectral-norm": _of_layers("the update's spectral norm", "update_spectral_norm", "update_spectral_norm"),
    "rates": Kind("effective rates and the factors that they are made of", "layers", False, _rates, ("trust_ratio",)),
    "explosions": Kind("which layers exploded when, and until when", "layers", False, _explosions),
    "warmup": Kind("accuracy with and without warm-up, in pairs of runs", "layers", True, _warmup),
    "sharpness": Kind("raw, relative, adaptive and effective sharpness by step", "curvature", True, _sharpness),
    "density": Kind("spectral density of the Hessian", "spectrum", True, _density),
    "blocks": Kind("sharpness of each layer's block", "curvature", False, _blocks),
    "gap": Kind("end sharpness against the generalisation gap, over runs", "curvature", True, _gap),
    "comparison": Kind(
        "settings side by side, with intervals over seeds", "epochs", True, _comparison, ("test_acc1",), counts_all=True
    ),
    "learning-rates": Kind(
        "accuracy against the peak learning rate", "epochs", True, _rate_sensitivity, ("test_acc1",), counts_all=True
    ),
    "noise": Kind("gradient noise scale by step, beside the run's own batch", "noise", False, _noise),
    "noise-layers": Kind("layer × step heat map of the gradient noise scale", "noise", False, _noise_of_layers),
    "batch-size": Kind("how large the batch may be: the answers side by side", "steps", True, _batch_size),
    "time-to-target": Kind("samples to a target loss by batch size", "steps", True, _time_to_target),
    "landscape": Kind("loss along a direction, or between two runs", "landscape", False, _landscape_line),
    "landscape-map": Kind("loss over the plane of two directions", "landscape", False, _landscape_map),
}
"""Every kind of chart, by its name on the command line."""


def kind(name: str) -> Kind:
    """The kind called ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in KINDS:
        raise unknown("kind of chart", name, KINDS)
    return KINDS[name]


def lacking(name: str, source: Source) -> str | None:
    """Why a run can't be shown as the kind ``name``, with the remedy; None if it can."""
    chosen = KINDS[name]
    if source.lacks(chosen.needs):
        return _REMEDIES[chosen.needs]
    missing = [column for column in chosen.columns if source.lacks(chosen.needs, column)]
    return _UNTOLD[missing[0]] if missing else None


_SHARPNESS = "train --sharpness-every, record(probes=[SharpnessProbe(...)]), or tvlars-probe sharpness"
_DENSITY = "tvlars-probe sharpness --density"

_NOISE = "train --noise or --noise-every, record(noise=True), or tvlars-probe batch-size RUN --checkpoint last"

_REMEDIES = {
    "layers": "no layers are on record (train --record full, record(detail='full'))",
    "steps": "no step is on record yet",
    "epochs": "no epoch is finished yet",
    "curvature": f"no sharpness is on record ({_SHARPNESS})",
    "spectrum": f"no density is on record ({_DENSITY})",
    "noise": f"no gradient noise is on record ({_NOISE})",
    "landscape": "no slice is on record (tvlars-probe landscape)",
}
"""By table: what a run without a row in it lacks, and the command that records it."""

_UNTOLD = {
    "loss": "no loss is on record (in a loop of your own: rec.log(loss=loss))",
    "test_acc1": "no test accuracy is on record (in a loop of your own: rec.log_epoch(epoch=..., test_acc1=...))",
    "update_norm": "no norm of an update is on record (train --record full, record(detail='full'))",
    "weight_spectral_norm": "no spectral norm is on record (train --spectral-every, record(spectral_every=N))",
    "update_spectral_norm": "no spectral norm of updates (train --spectral-every, record(spectral_every=N))",
    "trust_ratio": "no trust ratio is known of this optimizer (tvlars_probe.describe says what is known)",
}
"""By column: what a run lacks that has rows without a value in it, and how it is recorded."""


def left_out(name: str, sources: Sequence[Source]) -> list[tuple[Source, str]]:
    """The runs that lack the data for the kind ``name``, each with the reason."""
    return [(source, reason) for source in sources if (reason := lacking(name, source)) is not None]


def remarks(name: str, sources: Sequence[Source]) -> list[str]:
    """A sentence for each reason why the chart ``name`` leaves runs out, or counts them without a value."""
    by_reason: dict[str, list[str]] = {}
    for source, reason in left_out(name, sources):
        by_reason.setdefault(reason, []).append(str(source.trace.path))
    one, many = (
        ("counts without a value", "count without a value")
        if KINDS[name].counts_all
        else ("is left out", "are left out")
    )
    return [
        f"{paths[0]} {one}: {reason}"
        if len(paths) == 1
        else f"{len(paths)} runs {many} ({some_of(paths, most=3, room=300)}): {reason}"
        for reason, paths in by_reason.items()
    ]


def draw(name: str, sources: Sequence[Source]) -> Chart:
    """Draw the kind ``name`` from the runs that have the data for it; `left_out` names the others.

    Raises:
        UserError: there is no such kind, no run has the data, or the kind shows one run and several are given.
        NothingToShowError: the chart would be empty.
    """
    chosen = kind(name)
    if not chosen.several and len(sources) != 1:
        raise UserError(f"chart {name} shows one run, {len(sources)} were given: draw it for each")
    without = left_out(name, sources)
    if len(without) == len(sources):
        source, reason = without[0]
        raise TraceError(f"{source.trace.path} can't be drawn as {name}: {reason}")
    lacks = [] if chosen.counts_all else [source for source, _ in without]
    try:
        return chosen.draw([source for source in sources if not any(source is one for one in lacks)])
    except NothingToShowError as error:
        raise NothingToShowError(f"chart {name} would be empty: {error}") from None


def why_not(name: str, sources: Sequence[Source]) -> str | None:
    """Why none of these runs can be drawn as the kind ``name``, with the remedy; None if one can.

    Most charts are drawn to find out: whether there are pairs of runs, or any value with a place in the chart, is known
    no sooner.
    """
    chosen, reasons = KINDS[name], []
    # A kind that shows several runs is asked about all of them at once.
    for some in [sources] if chosen.several else [[source] for source in sources]:
        try:
            able = [source for source in some if lacking(name, source) is None]
            if able:
                (chosen.check or chosen.draw)(some if chosen.counts_all else able)
                return None
            reasons.append(lacking(name, some[0]))
        except TraceError as error:
            reasons.append(str(error))
    return reasons[0]
