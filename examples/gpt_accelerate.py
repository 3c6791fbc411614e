"""A small GPT in a loop of one's own with accelerate: gradients accumulated and clipped, tokens counted.

    pip install 'tvlars-probe[transformers]'
    python examples/gpt_accelerate.py

Each step's row has the norm before clipping, the factor and the loss. The last lines tell how often the gradient was
clipped, and the tensor whose update was largest for its weights.
"""

import itertools
from pathlib import Path

import click
import torch
from accelerate import Accelerator
from texts import VOCABULARY, Lines
from transformers import GPT2Config, GPT2LMHeadModel

import tvlars_probe


def train(path: Path, *, steps: int, batch: int, pieces: int, width: int, layers: int, length: int) -> None:
    """Train and record into ``path``: ``pieces`` micro-batches of ``batch`` pieces of text per update."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=length,
            n_embd=width,
            n_layer=layers,
            n_head=max(1, width // 32),
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    accelerator = Accelerator(gradient_accumulation_steps=pieces)
    loader = torch.utils.data.DataLoader(Lines(length), batch_size=batch, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses: list[torch.Tensor] = []
    with tvlars_probe.record(model, optimizer, path, total_steps=steps) as rec:
        for inputs in itertools.chain.from_iterable(itertools.repeat(loader)):
            with accelerator.accumulate(model):
                loss = model(**inputs).loss
                accelerator.backward(loss)
                losses.append(loss.detach())
                if accelerator.sync_gradients:
                    rec.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                samples = batch * len(losses)
                # The first character of a piece has none before it: nothing predicts it.
                rec.log(loss=torch.stack(losses).mean(), samples=samples, tokens=samples * (length - 1))
                losses.clear()
                if rec.step == steps:
                    break


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/gpt"), show_default=True)
@click.option("--steps", default=200, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Pieces of text per micro-batch.")
@click.option("--pieces", default=4, show_default=True, help="Micro-batches per update.")
@click.option("--width", default=128, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--length", default=64, show_default=True, help="Characters of a piece.")
def main(run_dir: Path, **sizes: int) -> None:
    """Train, and show what was clipped."""
    train(run_dir, **sizes)
    run = tvlars_probe.open_run(run_dir)
    steps, layers = run.steps(), run.layers(["step", "parameter", "weight_norm", "update_norm"])
    clipped = steps["clip_scale"] < 1
    click.echo(f"{steps['tokens'].iloc[-1]:,} tokens; clipped in {clipped.sum()} of {len(steps)} steps")
    last = layers[layers.step == layers[layers.update_norm.notna()].step.max()].set_index("parameter")
    relative = (last["update_norm"] / last["weight_norm"]).sort_values()
    click.echo(f"largest relative update at the end: {relative.index[-1]}, {relative.iloc[-1]:.2%} of its weights")
    click.echo(f"\nNext: tvlars-probe chart loss {run_dir} -o loss.html")


if __name__ == "__main__":
    main()
