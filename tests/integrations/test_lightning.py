"""What Lightning's Trainer has beside a plain loop: manual optimization, several optimizers, checkpoints, metrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.integrations.test_contract import assert_same_rows
from tests.integrations.trainers import BATCH, QUIET, STEPS, Job
from tvlars_probe.errors import UserError
from tvlars_probe.integrations import LightningProbe
from tvlars_probe.probes.readers.batch_sizes import samples_in

if TYPE_CHECKING:
    from pathlib import Path


class Classifier(LightningModule):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.net = job.model()

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self.net(**batch)["loss"]

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        logits = self.net(batch["x"])["logits"]
        self.log("val_loss", F.cross_entropy(logits, batch["labels"]))
        self.log("val_acc", (logits.argmax(1) == batch["labels"]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def trainer(folder: Path, probe: LightningProbe, **settings: Any) -> Trainer:
    callbacks = [probe, *settings.pop("callbacks", [])]
    chosen: dict[str, Any] = {**QUIET, "max_epochs": 2, "default_root_dir": str(folder), **settings}
    return Trainer(**chosen, callbacks=callbacks)


def test_metrics_of_the_validation_stand_in_the_epochs(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    module = Classifier(job)
    trainer(tmp_path, LightningProbe(tmp_path / "r"), num_sanity_val_steps=1).fit(module, job.loader, job.loader)
    run = tvlars_probe.open_run(tmp_path / "r")
    epochs = run.epochs()
    assert epochs["epoch"].tolist() == [0, 1]
    assert epochs["step"].tolist() == [STEPS, 2 * STEPS]
    with torch.no_grad():
        logits = module.net(job.items.x)["logits"]
    right = (logits.argmax(1) == job.items.labels).double().mean().item()
    assert epochs["val_loss"].iloc[-1] == pytest.approx(F.cross_entropy(logits, job.items.labels).item(), rel=1e-5)
    assert epochs["val_acc1"].iloc[-1] == pytest.approx(100 * right, rel=1e-6)
    assert run.steps()["epoch"].tolist() == [0] * STEPS + [1] * STEPS
    assert run.steps()["samples"].iloc[-1] == 2 * STEPS * BATCH


def test_a_training_that_goes_on_from_a_checkpoint_goes_on_in_the_same_trace(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    trainer(tmp_path, LightningProbe(tmp_path / "whole")).fit(Classifier(job), job.loader)
    # At an epoch's end: within one, Lightning itself begins again with the first batch.
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_epochs=1, save_top_k=-1)
    first = trainer(
        tmp_path, LightningProbe(tmp_path / "cut"), callbacks=[keep], enable_checkpointing=True, max_steps=9
    )
    first.fit(Classifier(job), job.loader)
    (checkpoint,) = (tmp_path / "kept").glob(f"*step={STEPS}*")
    trainer(tmp_path, LightningProbe(tmp_path / "cut")).fit(Classifier(job), job.loader, ckpt_path=str(checkpoint))
    cut = tvlars_probe.open_run(tmp_path / "cut")
    assert [segment["first_step"] for segment in cut.manifest.segments] == [0, STEPS]
    assert_same_rows(tmp_path / "cut", tmp_path / "whole", 1e-6)


class Told(Classifier):
    """Logs an accuracy of its own once the epoch has ended: the epoch's number."""

    def on_train_epoch_end(self) -> None:
        self.log("train_acc", (self.trainer.current_epoch + 1) / 10)


def test_each_epoch_has_its_own_metrics_and_none_of_an_earlier_one(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    settings = {"max_epochs": 4, "check_val_every_n_epoch": 2}
    trainer(tmp_path, LightningProbe(tmp_path / "r"), **settings).fit(Told(job), job.loader, job.loader)
    epochs = tvlars_probe.open_run(tmp_path / "r").epochs()
    assert epochs["epoch"].tolist() == [0, 1, 2, 3]
    assert epochs["step"].tolist() == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]
    assert epochs["train_acc1"].tolist() == pytest.approx([10, 20, 30, 40])
    assert epochs["val_loss"].isna().tolist() == [True, False, True, False]


@pytest.mark.parametrize("exists", ["error", "new"])
def test_a_checkpoint_made_after_the_training_goes_on_too(exists: str, tmp_path: Path) -> None:
    """In the folder that the recording really had, also where another one was asked for and taken."""
    job, asked = Job(path=None, folder=tmp_path), tmp_path / "r"
    if exists == "new":
        asked.mkdir()
        (asked / "notes.txt").write_text("somebody's")
    first = trainer(tmp_path, LightningProbe(asked, exists=exists), max_epochs=1)
    first.fit(Told(job), job.loader)
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = trainer(tmp_path, LightningProbe(asked, exists=exists))
    again.fit(Told(job), job.loader, ckpt_path=str(tmp_path / "last.ckpt"))
    run = tvlars_probe.open_run(tmp_path / "r-2" if exists == "new" else asked)
    assert [segment["first_step"] for segment in run.manifest.segments] == [0, STEPS]
    assert run.steps()["step"].tolist() == [*range(2 * STEPS)]
    assert run.epochs()["train_acc1"].tolist() == pytest.approx([10, 20])
    assert not (tmp_path / "r-3").exists()


def test_a_checkpoint_without_a_recording_is_refused(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    unrecorded = Trainer(**QUIET, max_epochs=1, default_root_dir=str(tmp_path))
    unrecorded.fit(Classifier(job), job.loader)
    unrecorded.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=rf"of step {STEPS}, holds no recording of .*leave LightningProbe out"):
        trainer(tmp_path, LightningProbe(tmp_path / "r")).fit(
            Classifier(job), job.loader, ckpt_path=str(tmp_path / "last.ckpt")
        )
    assert not (tmp_path / "r").exists()


class Adversaries(LightningModule):
    """Two optimizers by turns, of which the second accumulates over two batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(5, 1), nn.Linear(5, 1)

    def training_step(self, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        first, second = self.optimizers()
        loss = self.one(batch["x"]).square().mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.manual_backward(self.two(batch["x"]).square().mean() / 2)
        if index % 2:
            second.step()
            second.zero_grad()
        return {"loss": loss}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.one.parameters(), lr=0.1), torch.optim.Adam(self.two.parameters(), lr=0.1)]


def test_optimizers_that_step_by_hand_have_their_rows_in_each_batch(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    trainer(tmp_path, LightningProbe(tmp_path / "r"), max_epochs=1).fit(Adversaries(), job.loader)
    run, module = tvlars_probe.open_run(tmp_path / "r"), Adversaries()
    layers = run.layers()
    assert len(run.steps()) == STEPS
    for name, steps in (("one.weight", [*range(STEPS)]), ("two.weight", [*range(1, STEPS, 2)])):
        assert layers[layers.parameter == name]["step"].tolist() == steps
    x = job.items.x.split(BATCH)
    module.one(x[0]).square().mean().backward()
    (module.two(x[0]).square().mean() / 2 + module.two(x[1]).square().mean() / 2).backward()
    found = layers.set_index(["step", "parameter"])["grad_norm"]
    assert found[0, "one.weight"] == pytest.approx(module.one.weight.grad.norm().item(), rel=1e-6)
    assert found[1, "two.weight"] == pytest.approx(module.two.weight.grad.norm().item(), rel=1e-6)
    loss = module.one(x[0]).square().mean().item()
    assert run.steps()["loss"].iloc[0] == pytest.approx(loss, rel=1e-6)
    assert run.steps()["clip_scale"].isna().all()


class Logging(Classifier):
    """Logs the loss of each batch in three ways, as a user may."""

    def __init__(self, job: Job, **how: Any) -> None:
        super().__init__(job)
        self.how, self.told = how, []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = super().training_step(batch, index)
        self.log("train_loss", loss, **self.how)
        self.told.append(loss.item())
        return loss


@pytest.mark.parametrize("how", [{}, {"on_epoch": True}, {"on_epoch": True, "on_step": False}], ids=str)
def test_a_metric_of_training_is_of_the_whole_epoch_or_none(how: dict[str, Any], tmp_path: Path) -> None:
    module = Logging(Job(path=None, folder=tmp_path), **how)
    trainer(tmp_path, LightningProbe(tmp_path / "r")).fit(module, Job(path=None, folder=tmp_path).loader)
    epochs = tvlars_probe.open_run(tmp_path / "r").epochs()
    if how:
        means = torch.tensor(module.told).view(2, STEPS).mean(1).tolist()
        assert epochs["train_loss"].tolist() == pytest.approx(means, rel=1e-5)
    else:
        assert len(epochs) == 0


def test_what_a_module_logs_at_an_epochs_end_stands_in_that_one(tmp_path: Path) -> None:
    """The Trainer calls it after its callbacks."""

    class Late(Classifier):
        def on_train_epoch_end(self) -> None:
            self.log("train_acc", float(self.current_epoch))

    job = Job(path=None, folder=tmp_path)
    settings: dict[str, Any] = {"max_epochs": 3, "callbacks": [EarlyStopping("train_acc", mode="max")]}
    trainer(tmp_path, LightningProbe(tmp_path / "r"), **settings).fit(Late(job), job.loader)
    epochs = tvlars_probe.open_run(tmp_path / "r").epochs()
    assert [epochs["epoch"].tolist(), epochs["train_acc1"].tolist()] == [[0, 1, 2], [0.0, 100.0, 200.0]]


def test_a_validation_stands_in_its_own_epoch_alone(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    settings: dict[str, Any] = {"max_epochs": 4, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 1}
    trainer(tmp_path, LightningProbe(tmp_path / "r"), **settings).fit(Classifier(job), job.loader, job.loader)
    assert tvlars_probe.open_run(tmp_path / "r").epochs()["epoch"].tolist() == [1, 3]


def test_a_step_that_calls_its_closure_again_has_the_loss_of_the_weights_before(tmp_path: Path) -> None:
    class Quasi(Logging):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2, tolerance_change=0.0, tolerance_grad=0.0)

    job = Job(path=None, folder=tmp_path)
    module = Quasi(job)
    with pytest.warns(UserWarning, match="what LBFGS does"):
        trainer(tmp_path, LightningProbe(tmp_path / "r"), max_epochs=1).fit(module, job.loader)
    steps = tvlars_probe.open_run(tmp_path / "r").steps()
    assert len(module.told) == 2 * STEPS
    assert steps["loss"].tolist() == pytest.approx(module.told[::2], rel=1e-6)


def test_gradients_that_are_clipped_by_value_have_no_factor(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    settings: dict[str, Any] = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "max_epochs": 1}
    trainer(tmp_path, LightningProbe(tmp_path / "r"), **settings).fit(Classifier(job), job.loader)
    steps = tvlars_probe.open_run(tmp_path / "r").steps()
    assert (steps["grad_norm_before_clipping"] > steps["grad_norm"]).all()
    assert steps["clip_scale"].isna().all()


def test_a_checkpoint_that_an_error_leaves_goes_on(tmp_path: Path) -> None:
    faulty = Job(path=None, folder=tmp_path, fault=(3 * BATCH, ZeroDivisionError()))
    kept = OnExceptionCheckpoint(tmp_path, "error")
    with pytest.raises(ZeroDivisionError):
        trainer(
            tmp_path, LightningProbe(tmp_path / "r"), callbacks=[kept], enable_checkpointing=True, max_epochs=1
        ).fit(Classifier(faulty), faulty.loader)
    job = Job(path=None, folder=tmp_path)
    trainer(tmp_path, LightningProbe(tmp_path / "r"), max_epochs=1).fit(
        Classifier(job), job.loader, ckpt_path=str(tmp_path / "error.ckpt")
    )
    run = tvlars_probe.open_run(tmp_path / "r")
    assert [segment["first_step"] for segment in run.manifest.segments] == [0, 3]
    assert run.status == "completed"


def test_a_batch_may_be_a_table_whose_values_are_no_method() -> None:
    assert samples_in([SimpleNamespace(values=3), torch.zeros(4, 2)]) == 4
    assert samples_in(SimpleNamespace(values=3)) is None
