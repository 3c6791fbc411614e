"""float16 and sharding in the trainers that this machine has: what only an accelerator runs. On the CPU: bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import tvlars_probe
from tests.gpu.networks import OURS, batch, network, train
from tvlars_probe import integrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BATCH, STEPS, OVERFLOWS = 8, 6, 3
"""Samples of a batch, steps, and the step whose loss is beyond float16."""


class Net(nn.Module):
    """Returns its loss, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.hidden(x).tanh())
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Samples(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random ones; those of the step that overflows are so large that their gradients are beyond float16."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.labels = torch.randn(BATCH * STEPS, 5, generator=generator), torch.arange(BATCH * STEPS) % 3
        self.x[BATCH * OVERFLOWS : BATCH * (OVERFLOWS + 1)] *= 1e6

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


def model_and_optimizer() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def accelerate(device: torch.device, folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    half = "fp16" if device.type == "cuda" else "bf16"
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision=half)
    given, inner = model_and_optimizer()
    model, optimizer, loader = accelerator.prepare(given, inner, DataLoader(Samples(), batch_size=BATCH))
    with tvlars_probe.record(model, optimizer, folder / "r") as rec:
        for samples in loader:
            loss = model(**samples)["loss"]
            accelerator.backward(loss)
            accelerator.unscale_gradients()
            rec.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            rec.log(loss=loss, samples=BATCH, epoch=0)


def lightning(device: torch.device, folder: Path) -> None:
    lightning = pytest.importorskip("lightning")
    model, optimizer = model_and_optimizer()

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, samples: dict[str, torch.Tensor], _: int) -> Any:
            return self.net(**samples)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    lightning.Trainer(
        max_epochs=1, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, gradient_clip_val=0.5,
        precision="16-mixed" if device.type == "cuda" else "bf16-mixed", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder),
        callbacks=[integrations.LightningProbe(folder / "r")],
    ).fit(Module(), DataLoader(Samples(), batch_size=BATCH))  # fmt: skip


def transformers(device: torch.device, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, optimizer = model_and_optimizer()
    on_cuda = device.type == "cuda"
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), use_cpu=not on_cuda, fp16=on_cuda, bf16=not on_cuda, report_to=[],
        disable_tqdm=True, save_strategy="no", logging_steps=1, num_train_epochs=1, max_grad_norm=0.5,
        per_device_train_batch_size=BATCH, train_sampling_strategy="sequential", remove_unused_columns=False,
    )  # fmt: skip
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    transformers.Trainer(
        model=model, args=arguments, train_dataset=Samples(), optimizers=(optimizer, constant),
        callbacks=[integrations.TrainerProbe(folder / "r")],
    ).train()  # fmt: skip


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("trainer", [accelerate, lightning, transformers])
def test_a_step_that_a_trainers_scaler_skips_has_no_row(
    trainer: Callable[[torch.device, Path], None], device: torch.device, tmp_path: Path
) -> None:
    trainer(device, tmp_path)
    run = tvlars_probe.open_run(tmp_path / "r")
    steps, layers = run.steps(), run.layers()
    # A scaler begins with a scale that float16 may not bear: steps may be skipped besides the one that must.
    made = len(steps)
    assert made == STEPS if device.type == "cpu" else 0 < made < STEPS
    assert {*layers["step"]} == {*range(made)}
    assert np.isfinite(layers[["weight_norm", "grad_norm", "update_norm"]].to_numpy(float)).all()
    # SGD's update is lr·g: so the gradients were recorded unscaled, and clipped.
    np.testing.assert_allclose(layers["update_norm"], 0.01 * layers["grad_norm"], rtol=1e-3)
    assert (steps["grad_norm"] <= 0.5 * (1 + 1e-3)).all()
    np.testing.assert_allclose(steps["grad_norm_before_clipping"] * steps["clip_scale"], steps["grad_norm"], rtol=1e-3)


@pytest.fixture
def group(device: torch.device, tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6's fully_shard needs streams that a CPU lacks")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", list(OURS))
def test_sharded_parameters_are_recorded_as_whole_ones(
    name: str, device: torch.device, tmp_path: Path, group: None
) -> None:
    sharded = network(device)
    fully_shard(sharded, mesh=init_device_mesh(device.type, (1,)))
    for model, folder in ((network(device), "whole"), (sharded, "sharded")):
        optimizer = OURS[name](model.parameters())
        with tvlars_probe.record(model, optimizer, tmp_path / folder) as rec:
            train(rec, model, optimizer, batch(device), steps=3)
    frames = [tvlars_probe.open_run(tmp_path / folder).layers() for folder in ("whole", "sharded")]
    # The gradient of a bias before BatchNorm is rounding alone, of which Adam's direction makes steps of full length.
    frames = [frame[frame["parameter"] != "0.bias"] for frame in frames]
    frames = [frame.astype({"parameter": str}).sort_values(["step", "parameter"]) for frame in frames]
    assert frames[0].parameter.tolist() == frames[1].parameter.tolist()
    for column in ("weight_norm", "grad_norm", "weight_grad_dot", "update_norm", "trust_ratio"):
        np.testing.assert_allclose(frames[1][column], frames[0][column], rtol=1e-4, atol=1e-6, err_msg=column)
