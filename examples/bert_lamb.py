"""A small BERT with LAMB, the optimizer that was made for it, under transformers' Trainer.

    pip install 'tvlars-probe[transformers]'
    python examples/bert_lamb.py

Characters are hidden and predicted. LAMB gives each tensor a rate of its own; the recorder shows how far these rates
are from one another: without them, one rate would be too high for some tensors and too low for others. The last lines
name the tensors at both ends, early and late.
"""

from pathlib import Path

import click
import torch
from texts import VOCABULARY, Lines
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments, get_linear_schedule_with_warmup

from tvlars_probe import LAMB, open_run
from tvlars_probe.integrations import TrainerProbe


def model_of(width: int, layers: int, length: int) -> BertForMaskedLM:
    """A BERT of ``layers`` layers of ``width``, with random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=length,
    )
    return BertForMaskedLM(config)


def train(path: Path, *, steps: int, batch: int, width: int, layers: int, length: int) -> None:
    """Train and record into ``path``."""
    model = model_of(width, layers, length)
    optimizer = LAMB(
        model.parameters(), lr=0.01, weight_decay=0.01, weight_decay_filter=True, lars_adaptation_filter=True
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(path.with_name(path.name + "-trainer")),
            max_steps=steps,
            per_device_train_batch_size=batch,
            max_grad_norm=1.0,
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            report_to=[],
            seed=0,
        ),
        train_dataset=Lines(length, hidden=0.15),
        optimizers=(optimizer, get_linear_schedule_with_warmup(optimizer, steps // 10, steps)),
        callbacks=[TrainerProbe(path)],
    )
    trainer.train()


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/bert"), show_default=True)
@click.option("--steps", default=300, show_default=True)
@click.option("--batch", default=64, show_default=True, help="Pieces of text per update.")
@click.option("--width", default=128, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--length", default=64, show_default=True, help="Characters of a piece.")
def main(run_dir: Path, steps: int, batch: int, width: int, layers: int, length: int) -> None:
    """Train, and show the trust ratios."""
    train(run_dir, steps=steps, batch=batch, width=width, layers=layers, length=length)
    run = open_run(run_dir)
    rows = run.layers(["step", "parameter", "trust_ratio"])
    adapted = rows[rows.groupby("parameter", observed=True)["trust_ratio"].transform("nunique") > 1]
    for step in (steps // 10, steps - 1):
        ratios = adapted[adapted.step == step].set_index("parameter")["trust_ratio"].sort_values()
        click.echo(f"\nstep {step}: trust ratios from {ratios.iloc[0]:.3g} to {ratios.iloc[-1]:.3g}")
        click.echo(f"  lowest:  {', '.join(map(str, ratios.index[:3]))}")
        click.echo(f"  highest: {', '.join(map(str, ratios.index[-3:]))}")
    click.echo(f"\nNext: tvlars-probe report {run_dir} -o bert.html")


if __name__ == "__main__":
    main()
