"""One small training, by each trainer: the same model, data, order and seed, recorded or not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import tvlars_probe
from tvlars_probe import integrations
from tvlars_probe.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

BATCH, STEPS = 8, 6


class Net(nn.Module):
    """A small network that returns its loss, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.hidden(x).tanh())
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Items(Dataset[dict[str, Tensor]]):
    """Samples in a fixed order, of which one may raise."""

    def __init__(self, count: int, fault: tuple[int, BaseException] | None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(count, 5, generator=generator)
        self.labels = torch.randint(3, (count,), generator=generator)
        self.fault = fault

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self.fault is not None and index == self.fault[0]:
            raise self.fault[1]
        return {"x": self.x[index], "labels": self.labels[index]}


@dataclass(kw_only=True)
class Job:
    """What a trainer is to do.

    Attributes:
        path: where to record; None to train unrecorded.
        accumulation: micro-batches per update.
        max_norm: to which gradients are clipped; None for no clipping.
        fault: the index of a sample that raises, and what.
        folder: for what the trainer writes itself.
        optimizer: makes the optimizer.
        measures: whether the Hessian's sharpness is measured, too.
        size: samples of a batch.
        ranks: number of ranks that train together; each has batches of its own.
        net: makes the model, which takes a sample's fields and returns its loss.
        data: the samples, `STEPS` updates of them where None.
        options: further arguments of `tvlars_probe.record`.
    """

    path: Path | None
    accumulation: int = 1
    max_norm: float | None = None
    fault: tuple[int, BaseException] | None = None
    folder: Path
    optimizer: Callable[[Any], torch.optim.Optimizer] = field(
        default=lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.9)
    )
    measures: bool = False
    size: int = BATCH
    ranks: int = 1
    net: Callable[[], nn.Module] = Net
    data: Dataset[dict[str, Tensor]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.net()

    @property
    def items(self) -> Dataset[dict[str, Tensor]]:
        return Items(BATCH * STEPS * self.accumulation, self.fault) if self.data is None else self.data

    @property
    def loader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.items, batch_size=self.size)

    @property
    def shard(self) -> DataLoader[dict[str, Tensor]]:
        """This rank's part of the samples, every other one."""
        return DataLoader(self.items, batch_size=self.size, sampler=DistributedSampler(self.items, shuffle=False))

    def settings(self, model: nn.Module) -> dict[str, Any]:
        """Further arguments of `tvlars_probe.record`."""
        if not self.measures:
            return {**self.options}
        items = Items(BATCH * STEPS, None)
        return {
            **self.options,
            "probes": [
                tvlars_probe.SharpnessProbe(
                    model,
                    lambda output, labels: F.cross_entropy(output["logits"], labels),
                    (items.x, items.labels),
                    every=2,
                    tol=1e-6,
                )
            ],
        }

    def recording(self, model: Any, optimizer: Any) -> Any:
        if self.path is None:
            return contextlib.nullcontext()
        settings = {"total_steps": STEPS, **self.settings(unwrap(model))}
        return tvlars_probe.record(model, optimizer, self.path, **settings)


def updates(job: Job, batches: Any) -> Iterator[list[dict[str, Tensor]]]:
    """The batches of each update."""
    held = []
    for batch in batches:
        held.append(batch)
        if len(held) == job.accumulation:
            yield held
            held = []


def plain(job: Job) -> nn.Module:
    model: nn.Module = job.model()
    optimizer = job.optimizer(model.parameters())
    if job.ranks > 1:
        model = DistributedDataParallel(model)
    with job.recording(model, optimizer) as rec:
        for batches in updates(job, job.loader if job.ranks == 1 else job.shard):
            losses = []
            for batch in batches:
                losses.append(model(**batch)["loss"])
                (losses[-1] / job.accumulation).backward()
            if job.max_norm is not None:
                clip = nn.utils.clip_grad_norm_ if rec is None else rec.clip_grad_norm_
                clip(model.parameters(), job.max_norm)
            optimizer.step()
            optimizer.zero_grad()
            if rec is not None:
                rec.log(loss=torch.stack(losses).mean(), samples=job.size * job.accumulation, epoch=0)
    return model


def accelerate(job: Job) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=job.accumulation)
    model = job.model()
    prepared, optimizer, loader = accelerator.prepare(model, job.optimizer(model.parameters()), job.loader)
    losses: list[Tensor] = []
    with job.recording(prepared, optimizer) as rec:
        for batch in loader:
            with accelerator.accumulate(prepared):
                losses.append(prepared(**batch)["loss"])
                accelerator.backward(losses[-1])
                if accelerator.sync_gradients and job.max_norm is not None:
                    if rec is None:
                        accelerator.clip_grad_norm_(prepared.parameters(), job.max_norm)
                    else:
                        rec.clip_grad_norm_(prepared.parameters(), job.max_norm)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients and rec is not None:
                rec.log(loss=torch.stack(losses).mean(), samples=job.size * len(losses), epoch=0)
                losses.clear()
    return model


def transformers(job: Job) -> nn.Module:
    from transformers import Trainer, TrainingArguments

    model = job.model()
    optimizer = job.optimizer(model.parameters())
    arguments = TrainingArguments(
        output_dir=str(job.folder / "trainer"), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        logging_steps=1, num_train_epochs=1, per_device_train_batch_size=job.size, seed=0, dataloader_pin_memory=False,
        gradient_accumulation_steps=job.accumulation, max_grad_norm=0.0 if job.max_norm is None else job.max_norm,
        train_sampling_strategy="sequential", remove_unused_columns=False,
    )  # fmt: skip
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    callbacks = [] if job.path is None else [integrations.TrainerProbe(job.path, **job.settings(model))]
    Trainer(
        model=model, args=arguments, train_dataset=job.items, optimizers=(optimizer, constant), callbacks=callbacks
    ).train()
    return model


def on_ranks(job: Job) -> dict[str, Any]:
    """What tells Lightning that its ranks run already, as torchrun starts them."""
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    return {"strategy": "ddp", "devices": job.ranks, "plugins": [TorchElasticEnvironment()]}


def lightning(job: Job) -> nn.Module:
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.net(**batch)["loss"]  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.optimizer(self.net.parameters())

    model = job.model()
    several: dict[str, Any] = {}
    if job.ranks > 1:
        several = {**on_ranks(job), "use_distributed_sampler": False}  # Lightning's own shuffles
    trainer = Trainer(
        **{**QUIET, **several}, max_epochs=1, accumulate_grad_batches=job.accumulation, gradient_clip_val=job.max_norm,
        default_root_dir=str(job.folder),
        callbacks=[] if job.path is None else [integrations.LightningProbe(job.path, **job.settings(model))],
    )  # fmt: skip
    trainer.fit(Module(model), job.loader if job.ranks == 1 else job.shard)
    return model


def fabric(job: Job) -> nn.Module:
    from lightning.fabric import Fabric

    engine = Fabric(accelerator="cpu", **(on_ranks(job) if job.ranks > 1 else {"devices": 1}))
    engine.launch()
    model = job.model()
    wrapped, optimizer = engine.setup(model, job.optimizer(model.parameters()))
    loader = job.loader if job.ranks == 1 else job.shard
    with job.recording(wrapped, optimizer) as rec:
        for batches in updates(job, engine.setup_dataloaders(loader, use_distributed_sampler=False)):
            losses = []
            for number, batch in enumerate(batches, start=1):
                with engine.no_backward_sync(wrapped, enabled=number < job.accumulation):
                    losses.append(wrapped(**batch)["loss"])
                    engine.backward(losses[-1] / job.accumulation)
            if job.max_norm is not None:
                if rec is None:
                    engine.clip_gradients(wrapped, optimizer, max_norm=job.max_norm)
                else:
                    rec.clip_grad_norm_(model.parameters(), job.max_norm)
            optimizer.step()
            optimizer.zero_grad()
            if rec is not None:
                rec.log(loss=torch.stack(losses).mean(), samples=job.size * job.accumulation, epoch=0)
    return model


QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip

TRAINERS = {
    "plain": plain,
    "accelerate": accelerate,
    "transformers": transformers,
    "lightning": lightning,
    "fabric": fabric,
}
