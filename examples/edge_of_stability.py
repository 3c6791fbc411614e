"""The edge of stability, recorded: full-batch gradient descent sharpens until 2/lr, with momentum β until 2(1+β)/lr.

Cohen et al. (2021, arXiv:2103.00065) trained with all data in each step and found the Hessian's top eigenvalue to rise
until the optimizer is about to diverge, and to hover there. Here a tanh network learns 500 digits with squared loss,
and a probe measures the effective operator's top eigenvalue beside its limit.

    python examples/edge_of_stability.py --run-dir runs/edge
"""

from pathlib import Path

import altair as alt
import click
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tvlars_probe
from tvlars_probe.data.registry import DataConfig

RUNS = ((0.1, 0.0), (0.2, 0.0), (0.3, 0.9))  # lr, momentum
STEPS, EVERY = 6000, 50


def problem(samples: int = 500) -> tuple[nn.Module, Tensor, Tensor]:
    """A tanh network 64-64-64-10, and digits with one-hot targets."""
    digits = DataConfig(name="digits").load().train
    images, labels = digits.batch(torch.arange(samples))
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Flatten(), *layers), images, nn.functional.one_hot(labels, 10).float()


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """½‖f(x) − y‖², its mean over samples."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def descend(path: Path, lr: float, momentum: float, steps: int = STEPS, every: int = EVERY) -> pd.DataFrame:
    """Train, and return the sharpness as a share of the limit, by step."""
    model, inputs, targets = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    probe = tvlars_probe.SharpnessProbe(
        model, squared_loss, (inputs, targets), every=every, operators=("hessian", "effective")
    )
    config = {"lr": lr, "momentum": momentum}
    with tvlars_probe.record(
        model, optimizer, path, config=config, total_steps=steps, detail="none", probes=[probe]
    ) as rec:
        for _ in range(steps):
            loss = squared_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rec.log(loss=loss, samples=len(inputs))
    return history(path)


def history(path: Path) -> pd.DataFrame:
    """The recorded sharpness of a run."""
    run = tvlars_probe.open_run(path)
    rows = run.curvature(["step", "operator", "value", "limit", "error"])
    frame = rows[rows.operator == "effective"].copy()
    frame["share"] = frame.value / frame.limit
    config = run.manifest.config
    frame["run"] = f"lr {config['lr']:g}" + (f", momentum {config['momentum']:g}" if config["momentum"] else "")
    return frame


def chart(frame: pd.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Sharpness as a share of the limit, over steps."""
    lines = alt.Chart(frame, width=640, height=320, title="Gradient descent sharpens to the edge of stability")
    limit = alt.Chart(pd.DataFrame({"share": [1.0]})).mark_rule(strokeDash=[4, 4]).encode(y="share")
    curves = lines.mark_line().encode(
        x=alt.X("step", title="update"),
        y=alt.Y("share", title="effective sharpness / limit of stability"),
        color=alt.Color("run", title=None, scale=alt.Scale(range=["#0072B2", "#E69F00", "#009E73"])),
    )
    return alt.layer(curves, limit)


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/edge"), show_default=True)
@click.option("--chart", "chart_file", type=click.Path(path_type=Path), help="Write the chart here (html, png, svg).")
def main(run_dir: Path, chart_file: Path | None) -> None:
    """Train the three runs, or take those that are there, and say where their second halves were."""
    frames = []
    for lr, momentum in RUNS:
        path = run_dir / f"lr{lr:g}-momentum{momentum:g}"
        frames.append(history(path) if path.exists() else descend(path, lr, momentum))
    table = Table(title="Effective sharpness / limit, second half of the run")
    for name in ("run", "median", "lowest", "highest"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for frame in frames:
        late = frame[frame.step >= STEPS // 2].share
        table.add_row(frame.run.iloc[0], *(f"{figure:.3f}" for figure in (late.median(), late.min(), late.max())))
    Console(highlight=False).print(table)
    if chart_file is not None:
        chart(pd.concat(frames)).save(str(chart_file), scale_factor=2)


if __name__ == "__main__":
    main()
