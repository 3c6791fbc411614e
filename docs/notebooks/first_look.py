# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first look at a run
#
# Record two trainings, open them, and ask them: tables, charts, verdicts, a report. It takes some ten seconds on one
# core and needs no network. `pip install 'tvlars-probe[train]' jupytext` and `jupytext --to ipynb first_look.py` make
# a notebook of this file; VS Code and JupyterLab with jupytext open it as it is.

# %%
import torch
from sklearn.datasets import load_digits

import tvlars_probe

torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)

# %% [markdown]
# ## Record
#
# `record` attaches to the model and its optimizer; the loop stays yours. `exists="new"` lets the cell run twice: then
# the second run goes to `runs/lars-2`.


# %%
def train(name: str, lr: float, epochs: int = 8) -> tvlars_probe.Recorder:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = tvlars_probe.LARS(model.parameters(), lr=lr)
    with tvlars_probe.record(model, optimizer, f"runs/{name}", config={"name": name}, exists="new") as rec:
        for epoch in range(epochs):
            for batch in torch.randperm(1437).split(128):
                loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.log(loss=loss, samples=len(batch), epoch=epoch)
            with torch.no_grad():
                right = (model(images[1437:]).argmax(1) == labels[1437:]).float().mean()
            rec.log_epoch(epoch=epoch, test_acc1=100 * right.item())
    return rec


train("lars", lr=4.0)

# %%
train("high", lr=64.0)

# %% [markdown]
# ## Open
#
# Opening reads the manifest alone. A run, and a list of runs, show themselves as a table.

# %%
runs = tvlars_probe.open_runs("runs/*")
runs

# %%
run = tvlars_probe.open_run("runs/lars")
run

# %% [markdown]
# ## Tables
#
# Each table is a method. Columns, steps and parameters are chosen before anything is read.

# %%
run.steps(["step", "loss", "grad_norm"]).tail(3)

# %% [markdown]
# A query in pandas: of which tensors does one update change most, as a share of their norm?

# %%
layers = runs.layers(["run", "step", "parameter", "weight_norm", "update_norm", "trust_ratio"])
layers["relative_update"] = layers.update_norm / layers.weight_norm
layers.groupby(["run", "parameter"], observed=True).relative_update.agg(["median", "max"]).round(4)

# %% [markdown]
# The same rows as a frame of polars (`pip install polars`) or an Arrow table:

# %%
run.layers(["step", "parameter", "trust_ratio"], engine="arrow").schema.names

# %% [markdown]
# ## Charts
#
# Altair charts, of the kinds that `tvlars-probe chart --list` lists; `run.chart_kinds()` lists those that can be drawn
# of this run.

# %%
run.chart("trust-ratio")

# %%
runs.chart("loss")

# %% [markdown]
# ## Verdicts
#
# The answer, its reason, and what it rests on. Where a trace doesn't hold an answer, the verdict is "can't tell", and
# its reason says what is lacking.

# %%
warmup = run.warmup()
warmup

# %%
warmup.verdict["loss_rise"]  # a figure by its name

# %% [markdown]
# The table below it is `warmup.layers`, a frame. What trust ratios would TVLARS have given in these steps?

# %%
run.replay(optimizer="tvlars", lmbda=0.05)

# %% [markdown]
# ## A report
#
# One page with verdicts, charts and tables, which needs no network.

# %%
run.report("report.html")
