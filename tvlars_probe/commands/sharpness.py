"""``tvlars-probe sharpness``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from tvlars_probe.analyses.wording import some_of
from tvlars_probe.commands.interruption import interruptible
from tvlars_probe.commands.options import Choice, Command, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import say
from tvlars_probe.curvature.results import BN_MODES, ENGINES, OPERATORS
from tvlars_probe.data.registry import SPLITS
from tvlars_probe.errors import UserError
from tvlars_probe.runners.launching.torchrun import speaks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

_SHARPNESSES = ("batch_sharpness", "directional_sharpness", "critical_sharpness")


@click.command(cls=Command, name="sharpness", context_settings={"max_content_width": 110})
@click.argument("run", type=RunPath())
@option("--checkpoint", section="What", default="last", help="last, best, all, or a step.")
@option("--top", section="What", type=int, default=1, help="Eigenvalues from the top.")
@option("--bottom", section="What", type=int, default=0, help="Eigenvalues from the bottom.")
@option("--trace", section="What", is_flag=True, help="The trace, with its standard error.")
@option("--density", section="What", is_flag=True, help="The spectral density, into the table spectrum.")
@option("--epsilon", section="What", is_flag=True, help="Keskar's epsilon-sharpness.")
@option("--batch-sharpness", section="What", is_flag=True, help=
        "The curvature along mini-batches' own gradients, with its standard error over them.")  # fmt: skip
@option("--batch-size", section="What", type=int, show_default="the run's", help="Samples of such a mini-batch.")
@option("--directional-sharpness", section="What", is_flag=True, help="The curvature along the coming update.")
@option("--critical-sharpness", section="What", is_flag=True, help=
        "2/rate at the smallest multiple of the coming update that raises the loss; forward passes only.")  # fmt: skip
@option("--per-layer", section="What", is_flag=True, help="Eigenvalues and trace of each layer's block, too.")
@option("--operator", section="What", type=Choice(OPERATORS), default="hessian", help=
        "The Hessian; scaled by the optimizer's rates, or by each tensor's norm; the Gauss-Newton matrix; "
        "or adaptive, which no change of scale moves.")  # fmt: skip
@option("--audit", section="What", is_flag=True, help=
        "The top eigenvalue in every BatchNorm mode by both engines, side by side.")  # fmt: skip
@option("--split", section="Loss", type=Choice(SPLITS), default="train", help="Part of the data.")
@option("--samples", section="Loss", type=int, show_default="1000, or as many as there are", help=
        "Samples of that part, in each draw.")  # fmt: skip
@option("--draws", section="Loss", type=int, show_default="one sample", help=
        "Measure on so many disjoint samples, and give mean and standard error over them.")  # fmt: skip
@option("--bn", "bn_mode", section="Loss", type=Choice(BN_MODES), default="eval", help=
        "BatchNorm: running statistics, the sample's, or the sample's held constant.")  # fmt: skip
@option("--precision", section="Loss", type=Choice(("float32", "float64")), show_default="that of the run's weights",
        help="Number type of the model.")  # fmt: skip
@option("--engine", section="Method", type=Choice(ENGINES), default="lanczos", help="Ours, or the PyHessian package.")
@option("--tol", section="Method", type=float, default=1e-3, help="Relative residual of eigenvalues.")
@option("--max-matvecs", section="Method", type=int, default=1000, help="Products before an eigenvalue is given up.")
@option("--trace-matvecs", section="Method", type=int, default=45, help="Products for a trace.")
@option("--density-probes", section="Method", type=int, show_default="4 to 20, by the model's size", help=
        "Random vectors of a density.")  # fmt: skip
@option("--density-steps", section="Method", type=int, default=40, help="Lanczos steps from each.")
@option("--seed", section="Method", type=int, default=0, help="Seed of everything random.")
@option("--devices", "--dv", section="Devices", greedy=True, default=("auto",), show_default=
        "first CUDA device, else cpu", help="cpu, or numbers of CUDA devices, one rank each.")  # fmt: skip
@option("--nproc", section="Devices", type=int, show_default="1", help="Ranks on the CPU.")
@option("--threads", section="Devices", type=int, show_default="cores / ranks", help="torch threads per rank.")
@option("--model", section="Run", help="package.module:function giving (model, loss_fn, (inputs, targets)), or weights "
        "as a fourth value, for a run that train did not make; called with the run's config.")  # fmt: skip
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
@click.pass_context
def command(ctx: click.Context, /, run: Path, as_json: bool, audit: bool, **values: Any) -> None:
    """Measure the Hessian of the mean loss at a run's checkpoints, and keep the figures with the run."""
    from tvlars_probe.runners.posthoc.curvature import measure_run
    from tvlars_probe.runs import open_run

    open_run(run).curvature(["step"])  # raises if the rows on record can't be read: then none are added
    if audit:
        _check_audit(ctx)
    job = build_job(run, audit, values)
    with interruptible(lambda: _kept(run, job.name)):
        name = measure_run(job)
    if not speaks():
        return
    # What is shown is read back from the run, by the name of this measurement.
    rows = open_run(run).curvature()
    rows = rows[rows["measurement_id"].astype(str) == name]
    spectrum = open_run(run).frame("spectrum")
    spectrum = spectrum[spectrum["measurement_id"].astype(str) == name]
    if as_json:
        densities = [{"measure": "density", **row} for row in _records(spectrum)]
        click.echo(json.dumps([*_records(rows), *densities, *_means(rows)], indent=1))
        return
    if len(rows):
        render(rows)
    if len(spectrum):
        say(f"The density is in the table spectrum: tvlars-probe chart density {run} -o density.html")


def _kept(run: Path, name: str) -> str:
    """What an interrupted measurement has left, and how to go on."""
    from tvlars_probe.runs import open_run

    rows = open_run(run).curvature(["step", "measurement_id"])
    steps = sorted({*rows.loc[rows["measurement_id"].astype(str) == name, "step"]})
    if not steps:
        return "Interrupted: no checkpoint was measured to the end, and nothing is kept; the same command begins again"
    told = f"step{'' if len(steps) == 1 else 's'} {some_of([f'{step:,}' for step in steps])}"
    return f"Interrupted: the figures of {told} are kept with the run; --checkpoint STEP measures the others one by one"


def _check_audit(ctx: click.Context) -> None:
    """Refuse options that an audit would pass over: it has its own measures, BatchNorm modes and engines.

    Raises:
        UserError: one of them was given on the command line.
    """
    # A value doesn't tell whether it was given or is the default; its source does.
    own = ("top", "bottom", "trace", "density", "epsilon", *_SHARPNESSES, "batch_size", "per_layer", "operator",
           "bn_mode", "engine")  # fmt: skip
    given = [name for name in own if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if given:
        names = ", ".join("--bn" if name == "bn_mode" else f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"--audit is the top eigenvalue in every BatchNorm mode by both engines: leave out {names}")


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: numbers with all their digits, null where there is no value."""
    # As strings, the missing names of a category may become "nan".
    plain = rows.astype({str(name): str for name in rows.columns if rows[name].dtype == "category"})
    plain = plain.assign(created_at=[made.isoformat() for made in rows["created_at"]])
    return [
        {str(name): _json_value(str(name), value) for name, value in row.items()} for row in plain.to_dict("records")
    ]


def _json_value(name: str, value: Any) -> Any:
    if _is_null(value) or value == "nan":
        return None
    return int(value) if name == "draw" else value  # among nulls pandas has whole numbers as floats


_OF_MEANS = (
    "step", "phase", "measurement_id", "operator", "scope", "scope_kind", "rank", "value", "standard_error", "low",
    "high", "deviation", "draws", "error", "not_converged", "check", "samples", "loss", "split", "bn_mode", "engine",
    "precision", "batch_size", "epsilon", "dimensions", "limit",
)  # fmt: skip
"""What JSON tells of a mean over draws."""


def _means(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The means over draws, as JSON has them; none where there is one sample.

    Their ``measure`` is "mean_over_draws", so that whoever picks eigenvalues out of the list gets those of the draws;
    ``of`` is what was measured.
    """
    if rows["draw"].isna().all():
        return []
    from tvlars_probe.analyses.draws import over_draws
    from tvlars_probe.analyses.verdict import plain

    records: list[dict[str, Any]] = plain(over_draws(rows))
    return [
        {"measure": "mean_over_draws", "of": row["measure"], **{name: row[name] for name in _OF_MEANS}}
        for row in records
    ]


def build_job(run: Path, audit: bool, values: dict[str, Any]) -> Any:
    """The job that the options of a command line describe.

    Args:
        run: the run directory.
        audit: whether to measure the top eigenvalue alone, in every BatchNorm mode and by both engines.
        values: the other options, by the names of their parameters.
    """
    from tvlars_probe.curvature.measures import Measures
    from tvlars_probe.runners.configuration.place import PlaceConfig
    from tvlars_probe.runners.posthoc.curvature import SharpnessJob

    named = ("top", "bottom", "trace", "density", "epsilon", *_SHARPNESSES, "per_layer", "engine", "tol",
             "max_matvecs", "trace_matvecs", "density_probes", "density_steps", "seed")  # fmt: skip
    asked = {name: values[name] for name in named} | {"operators": (values["operator"],)}
    if values["batch_sharpness"]:
        asked["batch_size"] = values["batch_size"] or _batch_size_of(run)
    elif values["batch_size"] is not None:
        raise UserError("--batch-size is the size of the mini-batches of --batch-sharpness, which isn't asked for")
    if audit:
        asked = {"tol": values["tol"], "seed": values["seed"], "max_matvecs": values["max_matvecs"]}
    return SharpnessJob(
        run=run,
        measures=Measures(**asked),
        bn_modes=BN_MODES if audit else (values["bn_mode"],),
        engines=ENGINES if audit else (values["engine"],),
        place=PlaceConfig(devices=values["devices"], nproc=values["nproc"], threads=values["threads"]),
        **{name: values[name] for name in ("checkpoint", "split", "samples", "draws", "precision", "model")},
    )


def _batch_size_of(run: Path) -> int:
    """Samples of a run's mini-batches.

    Raises:
        UserError: the run doesn't tell.
    """
    from tvlars_probe.runs import open_run

    size = open_run(run).manifest.batch_size
    if size is None:
        raise UserError(f"{run} doesn't tell its batch size, which batch sharpness needs: give --batch-size")
    return size


_Cells = dict[str, "Callable[[dict[str, Any]], str]"]
"""By heading, how a cell is made of a row of ``curvature``, or of a mean over draws."""

_WHERE: _Cells = {
    "step": lambda row: str(row["step"]),
    "operator": lambda row: str(row["operator"]),
    "BatchNorm": lambda row: str(row["bn_mode"]),
    "engine": lambda row: str(row["engine"]),
    "scope": lambda row: str(row["scope"]),
    "measure": lambda row: _measure(row),
    "rank": lambda row: _number(row["rank"]),
}

_LIMIT: _Cells = {
    "limit": lambda row: "" if _is_null(row["limit"]) else f"{row['limit']:.3g}",
    "products": lambda row: _number(row["matvecs"]),
}

_CHECKS = {"None": "", "nan": "", "not cross-checked": "none"}
"""How an outcome of the products' check is shown; others as they are."""

_CHECK: _Cells = {"cross-check": lambda row: _CHECKS.get(text := str(row["check"]), text)}

_OF_ONE_SAMPLE: _Cells = {
    **_WHERE,
    "value": lambda row: f"{row['value']:.6g}",
    "error": lambda row: _error(row["error"]),
    "95 % from": lambda row: "" if _is_null(row["low"]) else f"{row['low']:.4g}",
    "to": lambda row: "" if _is_null(row["high"]) else f"{row['high']:.4g}",
    "converged": lambda row: {True: "yes", False: "no"}.get(row["converged"], ""),
    **_CHECK,
    **_LIMIT,
}

_OF_DRAWS: _Cells = {
    **_WHERE,
    "mean": lambda row: f"{row['value']:.6g}",
    "std. error": lambda row: _error(row["standard_error"]),
    "95 % from": lambda row: f"{row['low']:.4g}",
    "to": lambda row: f"{row['high']:.4g}",
    "draws": lambda row: str(row["draws"]),
    "deviation of one": lambda row: _error(row["deviation"]),
    "own error": lambda row: _error(row["error"]),
    "converged": lambda row: (
        "" if row["converged"] is None else f"{row['draws'] - row['not_converged']} of {row['draws']}"
    ),
    **_CHECK,
    **_LIMIT,
}

_SHARED = ("step", "operator", "BatchNorm", "engine", "scope", "draws", "cross-check", "limit")
"""Columns that stand above the table where all rows have one value."""

_WORDS = ("operator", "BatchNorm", "engine", "scope", "measure", "converged", "cross-check")
"""Columns that are set flush left."""


def render(rows: pd.DataFrame) -> None:
    """Print a table of values, errors, and whether they converged; of several draws the means, and how draws differ.

    What tells where and how the figures were measured stands above it where it is one value in all rows.
    """
    from tvlars_probe.analyses.draws import over_draws
    from tvlars_probe.commands.terminal import FittedTable, Terminal, TextColumn

    drawn = bool(rows["draw"].notna().any())
    columns = _OF_DRAWS if drawn else _OF_ONE_SAMPLE
    records: list[dict[str, Any]] = (over_draws(rows) if drawn else rows).to_dict("records")  # type: ignore[assignment]
    cells = {name: [cell(row) for row in records] for name, cell in columns.items()}
    told = [name for name, column in cells.items() if any(column)]
    shown = [name for name in told if not _is_shared(name, cells[name])]
    first = records[0]
    part = "" if _is_null(first["split"]) else f" of {first['split']}"
    shared = [f"{name} {max(cells[name])}" for name in told if name not in shown]
    console = Terminal(piped=120)
    size = f"{first['draws']} disjoint samples of {first['samples']:,}" if drawn else f"{first['samples']:,} samples"
    console.print(f"mean loss {first['loss']:.4g} on {size}{part}, {first['precision']}")
    console.print(", ".join(shared))
    columns_shown = [TextColumn(name, cells[name], is_number=name not in _WORDS) for name in shown]
    console.print(FittedTable(columns_shown))
    if drawn:
        console.print(f"Means over samples of {first['samples']:,}, which aren't figures of all the data")


def _is_shared(name: str, cells: list[str]) -> bool:
    """Whether a column stands above the table: that holds one value, of an outcome in all rows that have any."""
    outcome = name in ("converged", "cross-check")
    return (name in _SHARED and len({*cells}) == 1) or (outcome and len({*cells} - {""}) == 1)


def _measure(row: dict[str, Any]) -> str:
    """A measure's name; ε-sharpness and batch sharpness depend on settings, which stand in it."""
    if row["measure"] == "batch_sharpness":
        return f"batch_sharpness, batches of {_number(row['batch_size'])}"
    if row["measure"] != "epsilon_sharpness":
        return str(row["measure"])
    return f"epsilon {row['epsilon']:g}, {_number(row['dimensions']) or 'all'} dim."


def _error(value: Any) -> str:
    return "" if _is_null(value) else f"{value:.1e}"


def _is_null(value: Any) -> bool:
    return value is None or value != value  # NaN differs from itself


def _number(value: Any) -> str:
    return "" if _is_null(value) else f"{int(value)}"
