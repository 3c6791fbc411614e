"""Does the noise scale grow as the loss falls (McCandlish et al. 2018)? Of runs that recorded their noise, by seed.

    tvlars-probe sweep benchmarks/batch_size/growth.toml --out runs/growth
    python -m benchmarks.noise_growth runs/growth

Windows that don't overlap: for each the mean loss of its steps and B_simple with its 95 % interval. Over the windows of
a run the rank correlation of the two says whether one rises as the other falls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pandas as pd
from scipy import stats

from tvlars_probe.analyses.batches.noise_verdict import interval_text
from tvlars_probe.analyses.of_runs import noise_scale_of
from tvlars_probe.analyses.source import Source
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


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--window", default=240, show_default=True, help="Recorded steps of a window.")
def main(runs: tuple[str, ...], window: int) -> None:
    """Print B_simple and the loss in the first and the last window of each run, and how they go together."""
    for run in open_runs(runs):
        found = windows(run, window)
        known = found[found["simple_batch"].notna()]
        rank = stats.spearmanr(known["loss"], known["simple_batch"]).statistic if len(known) > 2 else float("nan")
        ends = []
        for row in (found.iloc[0], found.iloc[-1]):
            text = interval_text(float(row["simple_batch"]), float(row["low"]), float(row["high"]))
            ends.append(f"steps {row['first_step']:,}-{row['last_step']:,}: loss {row['loss']:.3f}, B_simple {text}")
        print(f"{run.name}: {'; '.join(ends)}; rank correlation over {len(known)} windows {rank:.2f}")


if __name__ == "__main__":
    main()
