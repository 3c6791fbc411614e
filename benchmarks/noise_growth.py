"""Does the noise scale grow as the loss falls (McCandlish et al. 2018)? Of runs that recorded their noise, by seed.

    tvlars-probe sweep benchmarks/batch_size/growth.toml --out runs/growth
    python -m benchmarks.noise_growth runs/growth --window 80 -o noise-growth.png

Windows that don't overlap: for each the mean loss of its steps and B_simple with its 95 % interval. Over the windows of
a run the rank correlation of the two says whether one rises as the other falls.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import click
import pandas as pd
from scipy import stats

from tvlars_probe.analyses.batches.noise_verdict import interval_text
from tvlars_probe.analyses.of_runs import noise_scale_of
from tvlars_probe.analyses.source import Source
from tvlars_probe.charts import theme
from tvlars_probe.charts.export import file_content
from tvlars_probe.runs import open_runs

if TYPE_CHECKING:
    from tvlars_probe.runs import Run


def windows(run: Run, window: int) -> pd.DataFrame:
    """A row per window: ``loss``, ``simple_batch``, ``low``, ``high``, ``first_step`` and ``last_step``."""
    source = Source(run)
    curve = noise_scale_of(source, window=window, tensors=False).curve
    loss = source.steps(["step", "loss"]).set_index("step")["loss"]
    rows, last = [], -1
    for row in curve[curve["source"] == "training"].to_dict("records"):
        if row["first_step"] > last:
            rows.append({**row, "loss": loss.loc[row["first_step"] : row["last_step"]].mean()})
            last = row["last_step"]
    return pd.DataFrame(rows)


def picture(by_run: dict[str, pd.DataFrame]) -> alt.LayerChart | alt.FacetChart:
    """B_simple against the loss, a line for each run; bars are 95 % intervals that have an upper end."""
    frames = [rows.assign(seed=str(k)) for k, rows in enumerate(by_run.values())]
    rows = pd.concat(frames)[["seed", "loss", "simple_batch", "low", "high"]]
    base = alt.Chart(rows[rows["simple_batch"].notna()]).encode(
        x=alt.X(
            "loss:Q",
            title="mean training loss of the window",
            scale=alt.Scale(type="log", reverse=True, nice=False, padding=8),
            axis=theme.log_axis(rows["loss"]),
        ),
        color=alt.Color("seed:N", legend=alt.Legend(columns=5)),
    )
    # An interval may reach to any height: the picture ends a little above the highest estimate.
    ends = [rows["low"].min() * 0.8, rows["simple_batch"].max() * 4]
    about: dict[str, Any] = {"title": "noise scale tr Σ/|G|² (samples)", "axis": theme.log_axis(ends)}
    scale = alt.Scale(type="log", domain=ends, nice=False)
    bars = base.mark_rule(opacity=0.5, clip=True).encode(y=alt.Y("low:Q", scale=scale, **about), y2="high:Q")
    line = base.mark_line(point=True, clip=True).encode(y=alt.Y("simple_batch:Q", scale=scale, **about))
    title = theme.title("The noise scale grows as the loss falls", "training runs from left to right; bars: 95 %")
    return alt.layer(bars, line).properties(width=theme.WIDTH, height=260, title=title)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--window", default=80, show_default=True, help="Recorded steps of a window.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Draw it, too.")
def main(runs: tuple[str, ...], window: int, out: Path | None) -> None:
    """Print B_simple and the loss in the first and the last window of each run, and how they go together."""
    by_run = {run.name: windows(run, window) for run in open_runs(runs)}
    for name, found in by_run.items():
        known = found[found["simple_batch"].notna()]
        rank = stats.spearmanr(known["loss"], known["simple_batch"]).statistic if len(known) > 2 else float("nan")
        ends = []
        for row in (found.iloc[0], found.iloc[-1]):
            text = interval_text(float(row["simple_batch"]), float(row["low"]), float(row["high"]))
            ends.append(f"steps {row['first_step']:,}-{row['last_step']:,}: loss {row['loss']:.3f}, B_simple {text}")
        print(f"{name}: {'; '.join(ends)}; rank correlation over {len(known)} windows {rank:.2f}")
    if out is not None:
        out.write_bytes(file_content(picture(by_run), out))


if __name__ == "__main__":
    main()
