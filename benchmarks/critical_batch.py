"""How often the 95 % interval of the critical batch holds it, and that of resampled seeds.

    python -m benchmarks.critical_batch

Steps to a target are drawn from the law S = S_min·(1 + B_crit/B) with a lognormal error, for six batch sizes from 32 to
1,024 and several seeds. The interval is that of `tvlars_probe.analyses.batches.trade_off`; beside it stands the usual
one, the percentiles of fits to the seeds of each batch size drawn with replacement.
"""

from __future__ import annotations

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tvlars_probe.analyses.batches.trade_off import fit_trade_off

SIZES = 2.0 ** np.arange(5, 11)
S_MIN = 500.0


def percentiles(steps: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """The percentile bootstrap over the seeds of each batch size; ``steps`` is (sizes, seeds)."""
    found = []
    for _ in range(resamples):
        drawn = np.take_along_axis(steps, rng.integers(steps.shape[1], size=steps.shape), axis=1)
        fit = fit_trade_off(np.repeat(SIZES, steps.shape[1]), drawn.ravel(), resamples=1)
        found.append(fit.b_crit.value)
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


@click.command()
@click.option("--draws", default=300, show_default=True, help="Draws of each case.")
@click.option("--resamples", default=400, show_default=True, help="Draws of the bootstrap.")
@click.option("--usual/--no-usual", default=False, help="Compute the usual interval, too, which takes long.")
def main(draws: int, resamples: int, usual: bool) -> None:
    """Coverage of both intervals."""
    table = Table("seeds", "noise", "B_crit", "this interval", "percentiles")
    for seeds in (2, 3, 5):
        for noise in (0.05, 0.15):
            for b_crit in (60.0, 250.0, 2000.0):
                hits = np.zeros(2)
                rng = np.random.default_rng([seeds, round(100 * noise), int(b_crit)])
                for draw in track(range(draws), console=Console(stderr=True), transient=True):
                    noisy = np.exp(rng.normal(0, noise, (len(SIZES), seeds)))
                    steps = S_MIN * (1 + b_crit / SIZES)[:, None] * noisy
                    batch = np.repeat(SIZES, seeds)
                    fit = fit_trade_off(batch, steps.ravel(), resamples=resamples, seed=draw)
                    hits[0] += fit.b_crit.low <= b_crit <= fit.b_crit.high
                    if usual:
                        low, high = percentiles(steps, rng, resamples)
                        hits[1] += low <= b_crit <= high
                told = [f"{100 * hit / draws:.1f} %" for hit in hits]
                table.add_row(str(seeds), f"{noise:g}", f"{b_crit:g}", told[0], told[1] if usual else "")
    Console().print(table)


if __name__ == "__main__":
    main()
