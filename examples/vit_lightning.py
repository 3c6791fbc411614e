"""A small ViT on handwritten digits with LARS under Lightning's Trainer, without and with warm-up.

    pip install 'tvlars-probe[lightning,transformers]'
    python examples/vit_lightning.py

Both runs have the same peak rate. `tvlars-probe warmup` on the two folders asks whether warm-up was needed.
"""

from pathlib import Path
from typing import Any

import click
import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from tvlars_probe import LARS, open_run
from tvlars_probe.integrations import LightningProbe


class Classifier(lightning.LightningModule):
    """A ViT of 2×2 patches of the digits' 8×8 pixels.

    Args:
        width: of its layers.
        layers: their number.
        lr: peak learning rate.
        warmup: updates in which the rate rises to it.
    """

    def __init__(self, width: int, layers: int, lr: float, warmup: int) -> None:
        super().__init__()
        self.lr, self.warmup = lr, warmup
        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 16),
            intermediate_size=2 * width,
            image_size=8,
            patch_size=2,
            num_channels=1,
        )
        config.num_labels = 10
        self.vit = ViTForImageClassification(config)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.vit(pixel_values=images, labels=labels).loss
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        found = self.vit(pixel_values=images, labels=labels)
        # Nothing is chosen by them, so that they are a test: the analyses compare runs by test accuracies.
        self.log("test_loss", found.loss)
        self.log("test_acc", (found.logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = LARS(self.parameters(), lr=self.lr, weight_decay_filter=True, lars_adaptation_filter=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


Loader = torch.utils.data.DataLoader[tuple[Tensor, ...]]


def loaders(batch: int) -> tuple[Loader, Loader]:
    """The digits, five sixths of them to train on."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    cut = len(labels) * 5 // 6
    training = torch.utils.data.TensorDataset(images[:cut], labels[:cut])
    validation = torch.utils.data.TensorDataset(images[cut:], labels[cut:])
    return Loader(training, batch_size=batch, shuffle=True), Loader(validation, batch_size=batch)


def train(path: Path, *, epochs: int, batch: int, width: int, layers: int, lr: float, warmup: int) -> None:
    """Train and record into ``path``."""
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[LightningProbe(path)],
    )
    training, validation = loaders(batch)
    trainer.fit(Classifier(width, layers, lr, warmup), training, validation)


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/vit"), show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--width", default=64, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--lr", default=16.0, show_default=True, help="Peak learning rate.")
def main(run_dir: Path, epochs: int, batch: int, width: int, layers: int, lr: float) -> None:
    """Train both runs, and compare their accuracies."""
    updates = epochs * -(-1497 // batch)
    for name, warmup in (("plain", 0), ("warm", updates // 5)):
        train(run_dir / name, epochs=epochs, batch=batch, width=width, layers=layers, lr=lr, warmup=warmup)
        last = open_run(run_dir / name).epochs().iloc[-1]
        click.echo(f"{name}: {last.test_acc1:.1f} % of the held-out digits")
    click.echo(f"\nNext: tvlars-probe warmup {run_dir / 'plain'} {run_dir / 'warm'}")


if __name__ == "__main__":
    main()
