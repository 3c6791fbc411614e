"""What a report holds: verdicts with their charts and tables, gathered run by run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tvlars_probe.analyses import headings
from tvlars_probe.analyses.batches.batch_size import batch_size_of
from tvlars_probe.analyses.comparison import compare, run_row
from tvlars_probe.analyses.correlation import correlate
from tvlars_probe.analyses.findings import findings_by_rule
from tvlars_probe.analyses.grid import norm_ratio
from tvlars_probe.analyses.of_runs import landscape_of, last_accuracy, minimizer_of, noise_scale_of
from tvlars_probe.analyses.rates import decompose
from tvlars_probe.analyses.settings import representative, settings_of
from tvlars_probe.analyses.warmup.analysis import analyse_warmup
from tvlars_probe.analyses.warmup.features import CURVATURE_COLUMNS
from tvlars_probe.analyses.warmup.marks import COLUMNS, STEP_COLUMNS
from tvlars_probe.analyses.warmup.pairs import pair_warmups
from tvlars_probe.charts import (
    batch_sizes,
    blocks,
    comparisons,
    curves,
    explosions,
    landscape,
    layers,
    noise,
    sharpness,
    sharpness_words,
    warmup_pairs,
)  # fmt: skip
from tvlars_probe.charts.export import spec_of
from tvlars_probe.charts.kinds import draw, lacking
from tvlars_probe.errors import NothingToShowError
from tvlars_probe.report.parts import Report, ReportTable, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

    from tvlars_probe.analyses.facts import RunFacts
    from tvlars_probe.analyses.minimizer import Minimizer
    from tvlars_probe.analyses.source import Source
    from tvlars_probe.analyses.verdict import Verdict
    from tvlars_probe.analyses.warmup.analysis import Warmup

MOST_DETAILED = 8
"""Most runs with charts of their own, one a setting. Further runs stand in the tables and the charts over all runs."""


@dataclass
class _Gathered:
    """What is kept of every run until all are read: small tables, no matrices.

    The lists run parallel, an entry per run; ``own`` holds the sections of the runs with charts of their own.
    """

    facts: list[RunFacts] = field(default_factory=list)
    warmups: list[tuple[Warmup, float | None]] = field(default_factory=list)
    minimizers: list[tuple[Minimizer, pd.DataFrame]] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    losses: list[tuple[RunFacts, pd.DataFrame]] = field(default_factory=list)
    epochs: list[tuple[RunFacts, pd.DataFrame]] = field(default_factory=list)
    findings: list[pd.DataFrame] = field(default_factory=list)
    own: list[Section] = field(default_factory=list)


def gather(sources: Sequence[Source], *, most_detailed: int = MOST_DETAILED) -> Report:
    """Analyse the runs one after the other and collect what the page shows.

    Args:
        sources: the runs, one phase of each.
        most_detailed: of so many settings, the first ones, a run of median accuracy has charts of its own.
    """
    found = _Gathered()
    detailed = _detailed(sources, most_detailed)
    for index, source in enumerate(sources):
        _analyse(source, found, detailed=index in detailed)
    sections = [*_over_runs(found), *_batch_size(sources), *_with_sharpness(found)]
    names: dict[str, None] = {}  # a set that keeps the order of the model
    for result, _ in (found.warmups[index] for index in detailed):
        names |= dict.fromkeys(str(name) for name in result.layers["parameter"])
    return Report(
        runs=_run_table(found),
        findings=_findings(found),
        sections=tuple(sections),
        manifests={source.facts.name: _environment(source) for source in sources},
        layers=tuple(names),
        left_out=len(sources) - len(detailed),
    )


def _detailed(sources: Sequence[Source], most: int) -> list[int]:
    """The places of the runs with charts of their own: one a setting."""
    settings = settings_of([source.facts for source in sources])
    accuracies = [last_accuracy(source.epochs(["test_acc1"])) for source in sources]
    return sorted([representative(setting, accuracies) for setting in settings][:most])


def _analyse(source: Source, found: _Gathered, *, detailed: bool) -> None:
    """Analyse one run: add its figures to ``found`` and, if it is ``detailed``, its sections."""
    # The grid is the run's largest part in memory. It is read once, for analysis and charts, and let go on return.
    grid, steps = source.layers(COLUMNS), source.steps(STEP_COLUMNS)
    facts = source.facts
    epochs = source.epochs()
    accuracy, curvature = last_accuracy(epochs), source.curvature(CURVATURE_COLUMNS)
    warmup = analyse_warmup(grid, steps, facts, accuracy=accuracy, curvature=curvature)
    found.facts.append(facts)
    found.warmups.append((warmup, accuracy))
    found.findings.append(findings_by_rule(source.trace.findings()))
    found.rows.append(run_row(replace(facts, peak_lr=source.peak_lr), epochs, metric="test_acc1", target=None))
    found.epochs.append((facts, epochs[["epoch", "test_acc1"]]))
    found.losses.append((facts, curves.loss_bins(steps)))
    minimizer = minimizer_of(source)
    found.minimizers.append((minimizer, epochs))
    if not detailed:
        return
    drawn = _Drawn()
    if len(grid.steps):
        drawn.add(lambda: layers.decomposition(decompose(grid, facts)))
        drawn.add(lambda: explosions.explosion_timeline(warmup))
        for quantity in ("trust_ratio", "lnr", "grad_norm"):
            values = norm_ratio(grid) if quantity == "lnr" else grid[quantity]
            drawn.add(partial(layers.heat_map, quantity, values, grid.steps, grid.parameters, facts))
        for name in ("spectral-norm", "update-spectral-norm"):  # in runs whose user has asked for them
            if lacking(name, source) is None:
                drawn.add(partial(draw, name, [source]))
    title, tables = f"{facts.name}: {facts.method}{facts.sampling}", tuple(_warmup_tables(warmup))
    found.own.append(drawn.section(f"warmup-{len(found.facts)}", title, warmup.verdict, tables))
    found.own += _minimizer_sections(source, minimizer, len(found.facts))
    found.own += _noise(source, len(found.facts))


_INK = "currentColor"
"""Charts take the colour of the page's text, which is light on a dark page."""


@dataclass
class _Drawn:
    """The charts of a section: their specifications, and a sentence for each that would be empty."""

    specs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, draw: Callable[[], Any]) -> None:
        """Draw a chart, or note why it would be empty."""
        try:
            self.specs.append(spec_of(draw(), _INK))
        except NothingToShowError as error:
            self.notes.append(f"No chart: {error}.")

    def section(
        self, anchor: str, title: str, verdict: Verdict | None, tables: tuple[ReportTable, ...] = ()
    ) -> Section:
        """The section that they are in."""
        return Section(anchor, title, verdict, tuple(self.specs), tuple(self.notes), tables)


def _minimizer_sections(source: Source, result: Minimizer, number: int) -> Iterator[Section]:
    """The sections on one run's minimum, as far as it is on record: its sharpness, and the loss around it.

    The curve of its sharpness is added by `_with_sharpness`, once all runs are read.
    """
    drawn = _Drawn()
    for rows, make in (
        (result.spectrum, lambda: sharpness.spectral_density([result])),
        (result.blocks, lambda: blocks.layer_blocks(result)),
    ):
        if len(rows):
            drawn.add(make)
    tables = [ReportTable("Sharpness", result.summary, SUMMARY)] if len(result.summary) else []
    if result.mini_batch is not None:
        table = ReportTable("Along gradients and updates", result.mini_batch.summary, headings.MINI_BATCH)
        tables.append(table)
    if len(result.samples) > len(result.summary) or (result.samples["draws"] > 1).any():
        tables.append(ReportTable("Sharpness by sample", result.samples, headings.SAMPLES))
    title = f"{result.facts.name}: {result.facts.method}"
    if drawn.specs or drawn.notes or len(result.curves):
        yield drawn.section(_minimizer_anchor(number), title, result.verdict, tuple(tables))
    if lacking("landscape", source) is None:
        slice_, around = landscape_of(source), _Drawn()
        around.add(lambda: landscape.landscape_line(slice_))
        if len(slice_.plane):
            around.add(lambda: landscape.landscape_map(slice_))
        yield around.section(f"landscape-{number}", title, slice_.verdict)


def _minimizer_anchor(number: int) -> str:
    return f"minimizer-{number}"


def _with_sharpness(found: _Gathered) -> Iterator[Section]:
    """The runs' own sections, with the curve of a run's sharpness where the chart over all runs doesn't have it."""
    measured = [result for result, _ in found.minimizers if len(result.curves)]
    joint = sharpness_words.same_mode(measured) if len(measured) > 1 else []
    if len(joint) > sharpness.MOST_RUNS:
        joint = []  # that chart has a line per setting
    apart = {
        _minimizer_anchor(number): result
        for number, (result, _) in enumerate(found.minimizers, 1)
        if len(result.curves) and not any(result is other for other in joint)
    }
    for section in found.own:
        if section.anchor in apart:
            drawn = _Drawn()
            drawn.add(partial(sharpness.sharpness_curves, [apart[section.anchor]]))
            specs, notes = (*drawn.specs, *section.specs), (*drawn.notes, *section.notes)
            yield replace(section, specs=specs, notes=notes)
        else:
            yield section


def _noise(source: Source, number: int) -> Iterator[Section]:
    """The section on the gradient's noise in one run, where it is on record."""
    if lacking("noise", source) is None and len((result := noise_scale_of(source)).curve):
        drawn = _Drawn(notes=[f"{doubt[:1].upper()}{doubt[1:]}." for doubt in result.doubts])
        drawn.add(lambda: noise.noise_curve(result))
        if len(result.layers):
            drawn.add(lambda: noise.noise_map(result))
        yield drawn.section(f"noise-{number}", f"{source.facts.name}: {source.facts.method}", result.verdict)


def _batch_size(sources: Sequence[Source]) -> Iterator[Section]:
    """How large the batch may be, over several runs of which any can tell."""
    if len(sources) > 1 and len((result := batch_size_of(sources)).table):
        drawn = _Drawn(notes=[f"{doubt[:1].upper()}{doubt[1:]}." for doubt in result.doubts])
        drawn.add(lambda: batch_sizes.answers_chart(result))
        if (time := result.time) is not None:
            drawn.add(lambda: batch_sizes.time_chart(time))
        table = ReportTable("Answers", result.table, headings.BATCH_SIZE)
        yield drawn.section("batch-size", "All runs", result.verdict, (table,))


def _findings(found: _Gathered) -> Section | None:
    """What rules found wrong while the runs trained; None where they found nothing."""
    import pandas as pd

    each = [rows.assign(run=f.name) for f, rows in zip(found.facts, found.findings, strict=True) if len(rows)]
    if not each:
        return None
    table = ReportTable("By rule", pd.concat(each, ignore_index=True), headings.FINDINGS)
    return Section("findings", "Findings while training", tables=(table,))


def loss_and_accuracy(
    losses: Sequence[tuple[RunFacts, pd.DataFrame]], epochs: Sequence[tuple[RunFacts, pd.DataFrame]]
) -> Section:
    """The section of runs' losses, as `curves.loss_bins` gives them, and of their accuracies by epoch."""
    drawn = _Drawn()
    drawn.add(lambda: curves.loss_curves(losses))
    drawn.add(lambda: curves.accuracy_curves(epochs))
    return drawn.section("curves", "Loss and accuracy", None)


def _over_runs(found: _Gathered) -> Iterator[Section]:
    """The sections on all runs together. Of one run these are its loss and accuracy alone."""
    plain = _Drawn()
    comparison = compare(found.rows) if len(found.facts) > 1 else None
    if comparison is None:
        yield loss_and_accuracy(found.losses, found.epochs)
        return
    plain.add(lambda: comparisons.comparison_chart(comparison))
    plain.add(lambda: curves.loss_curves(found.losses))
    plain.add(lambda: curves.accuracy_curves(found.epochs))
    cells = {name: name.replace("_", " ") for name in (*comparison.rows, *comparison.columns)}
    settings = ReportTable("Settings", comparison.table, cells | headings.COMPARISON)
    yield plain.section("comparison", "All runs", comparison.verdict, (settings,))
    pairs = pair_warmups(found.warmups)
    if len(pairs.pairs):
        drawn = _Drawn()
        drawn.add(lambda: warmup_pairs.warmup_pairs_chart(pairs))
        by_rate = ReportTable("Peak rates", pairs.cells, headings.warmup_cells())
        table = ReportTable("Pairs", pairs.pairs, headings.pairs("run"))
        yield drawn.section("pairs", "Pairs of runs", pairs.verdict, (by_rate, table))
    # A correlation takes two runs at least; each one's curve stands in its own section.
    measured = [pair for pair in found.minimizers if len(pair[0].curves)]
    if len(measured) > 1:
        over, both = correlate(measured), _Drawn()
        both.add(lambda: sharpness.sharpness_curves([result for result, _ in measured]))
        both.add(lambda: comparisons.gap_chart(over))
        table = ReportTable("Rank correlations", over.table, headings.CORRELATION)
        yield both.section("gap", "All runs", over.verdict, (table,))


def _warmup_tables(result: Warmup) -> Iterator[ReportTable]:
    yield ReportTable("Layers", result.layers, headings.LAYERS)
    exploded = result.explosions[result.explosions["exploded"]].sort_values("first_step", kind="stable")
    if len(exploded):
        yield ReportTable("Explosions", exploded, headings.EXPLOSIONS)


def _run_table(found: _Gathered) -> ReportTable:
    import pandas as pd

    rows = [
        {
            "run": f.name,
            "status": f.status,
            "optimizer": f.optimizer,
            "schedule": f.schedule,
            "batch_size": f.batch_size,
            "peak_lr": w.peak_lr,
            "seed": f.seed,
            "data": f.data,
            "model": f.model,
            "accuracy": accuracy,
            "warmup": w.verdict.answer,
            "minimizer": m.verdict.answer if len(m.curves) else "not measured",
        }
        for f, (w, accuracy), (m, _) in zip(found.facts, found.warmups, found.minimizers, strict=True)
    ]
    return ReportTable("Runs", pd.DataFrame(rows), RUNS)


def _environment(source: Source) -> dict[str, Any]:
    """What the page tells of a run's configuration and of the machines that it ran on."""
    m = source.trace.manifest
    # A group's description is for programs: its settings say the same in a few lines.
    groups = [{name: value for name, value in group.items() if name != "description"} for group in m.groups]
    return {
        "command": " ".join(m.command) if m.command else None,
        "configuration": m.config,
        "data": m.data,
        "parameter groups": groups,
        "segments": m.segments,
        "status": source.facts.status,
        "notes": m.notes,
    }


RUNS = {
    "run": "run", "status": "status", "optimizer": "optimizer", "schedule": "schedule", "batch_size": "batch",
    "peak_lr": "peak lr", "seed": "seed", "data": "data", "model": "model", "accuracy": "test acc (%)",
    "warmup": "warm-up needed?", "minimizer": "trapped?",
}  # fmt: skip
"""Headings of the table of runs."""

SUMMARY = {
    "operator": "sharpness", "measurements": "measurements", "early_peak": "early peak", "peak_step": "at step",
    "end": "end", "end_over_peak": "end / peak", "trapped_steps": "steps held", "state": "state",
    "on": "measured",
}  # fmt: skip
"""Headings of a run's table of sharpness."""
