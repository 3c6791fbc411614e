"""``tvlars-probe show``."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses.wording import counted, some_of
from tvlars_probe.commands.options import Command, option
from tvlars_probe.commands.run_paths import RunPath

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from tvlars_probe.commands.terminal import Terminal
    from tvlars_probe.runs import Run

EXTREMES = 5
"""Most layers that are shown at either end of the trust ratios."""


@click.command(cls=Command, name="show")
@click.argument("run", type=RunPath())
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
def command(run: Path, as_json: bool) -> None:
    """Show a run: configuration, progress, last metrics, and the layers with the highest and lowest trust ratio."""
    from tvlars_probe.runs import open_run

    facts = describe(open_run(run))
    if as_json:
        click.echo(json.dumps(without_non_finite(facts), indent=1, allow_nan=False))
        return
    render(facts)


def describe(run: Run) -> dict[str, Any]:
    """What is shown of a run, as plain values."""
    m = run.manifest
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "steps": {"done": _steps_done(run), "total": m.total_steps, "per_epoch": m.steps_per_epoch},
        "data": m.data,
        "model": m.model,
        "batch_size": m.batch_size,
        "micro_batches": m.micro_batches,
        "world_size": m.world_size,
        "peak_lr": m.peak_lr,
        "groups": m.groups,
        "config": m.config,
        "final": m.final,
        "best": m.best,
        "best_test_acc1": m.best_test_acc1,
        "finding": m.finding,
        "findings": _findings(run),
        "notes": m.notes,
        "noise_scale": _noise_scale(run),
        "trust_ratios": _extremes(run),
        "largest_updates": _largest_updates(run),
    }


def without_non_finite(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON doesn't have."""
    if isinstance(value, dict):
        return {key: without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _steps_done(run: Run) -> int:
    # Rows are counted: they tell how far a run came, whichever way it ended.
    return len(run.steps(["step"]))


def _findings(run: Run) -> list[dict[str, Any]]:
    """What rules found while the run trained: a row per rule, see `tvlars_probe.analyses.findings`."""
    from tvlars_probe.analyses.findings import findings_by_rule

    rows = findings_by_rule(run.findings()).to_dict("records")
    return [{str(name): None if value != value else value for name, value in row.items()} for row in rows]


def _noise_scale(run: Run) -> dict[str, Any] | None:
    """The gradient's noise scale in the last steps or the last probe, and where the run's batch stands beside it.

    Returns:
        ``simple_batch`` with its 95 % interval from ``low`` to ``high`` (NaN where unknown, infinite where it has no
        upper end), the ``unit`` that it counts, the ``step`` it is of, the run's ``batch``, and the ``answer``: below,
        at, beyond or can't tell; None where no noise is on record.
    """
    from tvlars_probe.analyses.batches.noise_verdict import is_heavy
    from tvlars_probe.analyses.of_runs import noise_scale_of
    from tvlars_probe.analyses.source import Source

    source = Source(run)
    if source.lacks("noise"):
        return None
    found = noise_scale_of(source, tensors=False)
    if (last := found.last) is None:
        return None
    figures = {name: float(last[name]) for name in ("simple_batch", "low", "high")}
    told = {"unit": found.unit, "step": int(last["step"]), "batch": found.batch, "answer": found.verdict.answer}
    return figures | told | {"heavy_tails": is_heavy(last)}


def _extremes(run: Run) -> dict[str, Any] | None:
    """The adapted layers with the highest and the lowest trust ratios in the last recorded step.

    Returns:
        the ``step``, the layers with the ``highest`` ratios, and those with the ``lowest``, the most extreme one first;
        None where no adapted layer is on record.
    """
    from tvlars_probe.traces.parts import list_parts

    parts = list_parts(run.path / "trace" / "layers")
    if not parts:
        return None
    # The name of the last part tells the last step, for which no row has to be read.
    step = parts[-1].last_step
    rows = run.layers(["parameter", "trust_ratio", "lr", "weight_norm", "grad_norm"], steps=(step, step))
    phases = run.manifest.parameters
    # Phases stand in the order in which they began: the last one has the last step. Other tensors' ratios are 1.
    adapted = {p["name"] for p in next(reversed(phases.values()), []) if p.get("adapted")}
    rows = rows[rows["parameter"].astype(str).isin(adapted) & rows["trust_ratio"].notna()]
    if rows.empty:
        return None
    ordered = rows.sort_values("trust_ratio", ascending=False, kind="stable")
    count = min(EXTREMES, (len(ordered) + 1) // 2)  # no layer stands at both ends
    # The ends alone become records: a part of a stranger's may have millions of rows of one step.
    highest, lowest = ordered.iloc[:count], ordered.iloc[count:][-EXTREMES:][::-1]
    return {"step": step, "highest": _records(highest), "lowest": _records(lowest)}


def _largest_updates(run: Run) -> list[dict[str, Any]]:
    """The weights that were changed most by a single update, see `tvlars_probe.analyses.largest_updates`."""
    from tvlars_probe.analyses.largest_updates import largest_updates
    from tvlars_probe.analyses.source import Source

    source = Source(run, next(reversed(run.manifest.parameters), None))
    if source.lacks("layers", "update_norm"):
        return []
    return [row | {"step": int(row["step"])} for row in _records(largest_updates(source, most=EXTREMES))]


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): str(value) if name == "parameter" else float(value) for name, value in row.items()}
        for row in rows.to_dict("records")
    ]


def render(facts: dict[str, Any]) -> None:
    """Print what `describe` found."""
    from rich.table import Table
    from rich.text import Text

    from tvlars_probe.commands.terminal import Terminal

    console = Terminal(piped=160)
    console.print(Text.assemble((facts["run"], "bold"), f"  {facts['status']}"))
    if facts["findings"]:
        console.print()
        _print_findings(console, facts["findings"])
        console.print()
    grid = Table.grid(padding=(0, 2))
    for name, value in _lines(facts):
        grid.add_row(Text(name, "dim"), Text(value))
    console.print(grid)
    if facts["trust_ratios"] is not None:
        _print_ratios(console, facts["trust_ratios"])
    if facts["largest_updates"]:
        _print_updates(console, facts["largest_updates"])


def _print_ratios(console: Terminal, ratios: dict[str, Any]) -> None:
    from tvlars_probe.commands.terminal import FittedTable, TextColumn

    sides = [title if i == 0 else "" for title in ("highest", "lowest") for i in range(len(ratios[title]))]
    rows = [*ratios["highest"], *ratios["lowest"]]
    figures = {
        "trust ratio": [row["trust_ratio"] for row in rows],
        "‖w‖": [row["weight_norm"] for row in rows],
        "‖g‖": [row["grad_norm"] for row in rows],
        "effective rate": [row["lr"] * row["trust_ratio"] for row in rows],
    }
    columns = [TextColumn("", sides), TextColumn("parameter", [row["parameter"] for row in rows])]
    columns += [
        TextColumn(name, [f"{value:.4g}" for value in values], is_number=True) for name, values in figures.items()
    ]
    console.print()
    console.print(FittedTable(columns, title=f"Trust ratios in step {ratios['step']}"))


def _print_updates(console: Terminal, rows: list[dict[str, Any]]) -> None:
    from tvlars_probe.commands.terminal import FittedTable, TextColumn

    figures = {
        "step": [f"{row['step']:,}" for row in rows],
        "‖Δw‖/‖w‖": [f"{row['update_ratio']:.4g}" if row["weight_norm"] else "from 0" for row in rows],
        "‖Δw‖": [f"{row['update_norm']:.4g}" for row in rows],
        "effective rate": [_effective_rate(row) for row in rows],
    }
    columns = [TextColumn("weight", [row["parameter"] for row in rows])]
    columns += [TextColumn(name, values, is_number=True) for name, values in figures.items()]
    console.print()
    console.print(FittedTable(columns, title="Largest updates of the recorded steps, by weight"))


def _effective_rate(row: dict[str, Any]) -> str:
    # Of an optimizer that nobody has described the trust ratio isn't known, and of some the rate neither.
    lr, ratio = row["lr"], row["trust_ratio"]
    return "" if math.isnan(lr) else f"{lr * (1 if math.isnan(ratio) else ratio):.4g}"


def _print_findings(console: Terminal, findings: list[dict[str, Any]]) -> None:
    """Print a line per rule: how often, when, and its first finding, which wraps."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for row in findings:
        grid.add_row(Text(row["rule"], "yellow"), Text(occurrences(row)), Text(row["text"]))
    console.print(Text("Findings", "bold"))
    console.print(grid)


def occurrences(row: dict[str, Any]) -> str:
    """How often and when a rule found something: "step 12", or "3 times, steps 12 to 40"."""
    if row["findings"] == 1:
        return f"step {row['first_step']:,}"
    return f"{row['findings']} times, steps {row['first_step']:,} to {row['last_step']:,}"


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What `describe` found as lines, each a name and a text; what isn't known has none."""
    steps, data, model = facts["steps"], facts["data"], facts["model"]
    total = f" of {steps['total']:,}" if steps["total"] else ""
    yield "steps", f"{steps['done']:,}{total}"
    if data:
        held = f", {data['val']:,} held out" if data["val"] else ""
        yield "data", f"{data['name']}: {data['train']:,} to train{held}, {data['test']:,} to test"
    if model:
        yield "model", f"{model['name']}, {model['parameters']:,} parameters"
    for group in facts["groups"]:
        yield "optimizer", describe_group(group)
    if facts["batch_size"]:
        yield "batch", f"{facts['batch_size']:,} over {counted(facts['world_size'], 'rank')}"
    # The configuration of a user's own loop may hold anything under these names.
    branch = facts["config"].get("branch")
    if isinstance(branch, dict):
        told = f"step {branch.get('step')}, batch {branch.get('batch_size')} there, rate by {branch.get('lr_rule')}"
        yield "branch of", f"{branch.get('parent')} at {told}, {branch.get('samples')} samples from there"
    schedule = facts["config"].get("schedule")
    if isinstance(schedule, dict) and facts["peak_lr"] is not None:
        yield "schedule", f"{schedule.get('name')}, peak lr {facts['peak_lr']:g}"
    if facts["noise_scale"] is not None:
        yield "noise scale", describe_noise_scale(facts["noise_scale"])
    for name, value in facts["final"].items():
        if name.endswith(("loss", "acc1", "acc5")):
            yield name, _figure(name, value)
    if facts["best"]:
        best = facts["best"]
        yield "best", f"{best['metric']} {best['value']:.2f} % after {best['step']:,} steps"
    if facts["finding"]:
        yield "not finite", describe_finding(facts["finding"])
    for note in facts["notes"]:
        yield "note", note


def describe_noise_scale(told: dict[str, Any]) -> str:
    """The noise scale with its interval, and where the batch stands, in one line."""
    from tvlars_probe.analyses.batches.noise_verdict import interval_text
    from tvlars_probe.analyses.verdict import CANT_TELL

    text = interval_text(*(told[name] for name in ("simple_batch", "low", "high")))
    unit = "" if text == "unknown" else f" {told['unit']}"
    tails = ", with heavy tails" if told["heavy_tails"] else ""
    batch = "its own batch" if told["batch"] is None else f"the batch of {told['batch']:,.0f}"
    where = "can't be placed beside it" if told["answer"] == CANT_TELL else f"is {told['answer']} it"
    return f"{text}{unit} at step {told['step']:,}{tails}: {batch} {where}"


def _figure(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.2f} %"


def describe_group(group: dict[str, Any]) -> str:
    """A parameter group in one line."""

    momentum = group.get("momentum") or {}
    held = group.get("parameters")
    parts = [
        str(group.get("optimizer")),
        counted(held, "tensor") if isinstance(held, int) else f"{held} tensors",
        *([f"lr {group['lr']:g}"] if isinstance(group.get("lr"), int | float) else []),
        f"weight decay {group.get('weight_decay')}",
    ]
    if momentum.get("beta"):
        parts.append(f"{momentum['form']} {momentum['beta']}")
    if group.get("eta") is not None:
        parts.append(f"eta {group['eta']}")
    if group.get("phi"):
        parts.append(" ".join(f"{name} {value:g}" for name, value in group["phi"].items()))
    return ", ".join(parts)


def describe_finding(finding: dict[str, Any]) -> str:
    """A finding in one line: the step, its loss if one was told, and the first tensors that were not finite."""
    where, tensor = "", finding["tensor"]
    if tensor:
        names = finding.get("tensors") or [tensor]  # the list is there where they were several
        where = f"; first tensor{'s' if len(names) > 1 else ''} {some_of(names)} ({finding['quantity']})"
    loss = "" if finding["loss"] is None else f"loss {finding['loss']} in "
    return f"{loss}step {finding['step']}{where}"


def summary_lines(run: Run) -> Iterator[str]:
    """How a training run ended, in a few lines."""
    m = run.manifest
    if m.finding:
        from tvlars_probe.traces.manifest import is_of_loss

        what = "The loss" if is_of_loss(m.finding) else "A tensor"
        yield f"{what} was not finite: {describe_finding(m.finding)}"
    told = [name for name in ("train_loss", "test_loss", "test_acc1") if name in m.final]
    final = [f"{name} {_figure(name, m.final[name])}" for name in told]
    best = "" if m.best_test_acc1 is None else f" (best {m.best_test_acc1:.2f} %)"
    if final:
        yield f"{run.status}: {', '.join(final)}{best}"
    else:
        yield run.status
    for row in _findings(run):
        yield f"Found {row['rule']} ({occurrences(row)}): {row['text']}"
    yield f"Run: {run.path}"
