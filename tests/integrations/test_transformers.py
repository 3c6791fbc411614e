"""What transformers' Trainer has beside a plain loop: losses by tokens or made elsewhere, evaluation, checkpoints."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import tvlars_probe
from tests.integrations.test_contract import assert_same_rows
from tests.integrations.trainers import BATCH, STEPS, Items, Job, Net
from tvlars_probe.errors import UserError
from tvlars_probe.integrations import TrainerProbe
from tvlars_probe.integrations.attachment import epoch_figures

if TYPE_CHECKING:
    from pathlib import Path

    from torch.utils.data import Dataset


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    chosen: dict[str, Any] = {
        "output_dir": str(folder / "trainer"), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 0,
        "save_strategy": "no", "logging_steps": 1, "num_train_epochs": 1, "per_device_train_batch_size": BATCH,
        "dataloader_pin_memory": False, "train_sampling_strategy": "sequential", "remove_unused_columns": False,
        "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "learning_rate": 0.1,
    }  # fmt: skip
    return TrainingArguments(**{**chosen, **settings})


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Token numbers of unlike length, padded with labels that count for nothing."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(1, 20, (count, 9), generator=generator)
        self.lengths = torch.randint(2, 10, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        is_there = torch.arange(9) < self.lengths[index]
        return {
            "input_ids": self.tokens[index],
            "attention_mask": is_there.long(),
            "labels": torch.where(is_there, self.tokens[index], -100),
        }


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, max_position_embeddings=9, **sizes))


def test_the_loss_of_a_language_model_is_the_mean_over_the_tokens_of_the_whole_update(tmp_path: Path) -> None:
    data = Sentences(4 * 12)
    trainer = Trainer(
        model=language_model(),
        args=arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3),
        train_dataset=data,
        callbacks=[TrainerProbe(tmp_path / "r")],
    )
    trainer.train()
    run = tvlars_probe.open_run(tmp_path / "r")
    steps, model = run.steps(), language_model()
    batch = [data[i] for i in range(12)]
    logits = model(torch.stack([one["input_ids"] for one in batch])).logits[:, :-1]
    labels = torch.stack([one["labels"] for one in batch])[:, 1:]
    loss = F.cross_entropy(logits.reshape(-1, 20), labels.reshape(-1))
    loss.backward()
    assert steps["loss"].iloc[0] == pytest.approx(loss.item(), rel=1e-6)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert steps["grad_norm"].iloc[0] == pytest.approx(norm, rel=1e-5)
    assert steps["tokens"].iloc[0] == (labels != -100).sum().item()
    assert steps["samples"].tolist() == [12, 24, 36, 48]
    assert run.manifest.loss_mean == "tokens"
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    np.testing.assert_allclose(steps["loss"], logged, rtol=1e-5)
    assert run.layers()["parameter"].astype(str).str.startswith("model.layers.0.").any()


def test_evaluations_stand_in_the_epochs(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    model = job.model()

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    Trainer(
        model=model, args=arguments(tmp_path, num_train_epochs=2, eval_strategy="epoch"), train_dataset=job.items,
        eval_dataset=job.items, compute_metrics=accuracy, callbacks=[TrainerProbe(tmp_path / "r")],
    ).train()  # fmt: skip
    run = tvlars_probe.open_run(tmp_path / "r")
    epochs = run.epochs()
    assert (epochs["epoch"].tolist(), epochs["step"].tolist()) == ([0, 1], [STEPS, 2 * STEPS])
    with torch.no_grad():
        logits = model(job.items.x)["logits"]
    right = (logits.argmax(1) == job.items.labels).double().mean().item()
    assert epochs["val_acc1"].iloc[-1] == pytest.approx(100 * right, rel=1e-6)
    assert epochs["val_loss"].iloc[-1] == pytest.approx(F.cross_entropy(logits, job.items.labels).item(), rel=1e-5)
    assert run.steps()["epoch"].tolist() == [0] * STEPS + [1] * STEPS


@pytest.mark.parametrize(
    "settings",
    [{}, {"eval_strategy": "steps", "eval_steps": 2}, {"restore_callback_states_from_checkpoint": True}],
    ids=["", "evaluating", "restoring callbacks"],
)
def test_a_training_that_goes_on_from_a_checkpoint_goes_on_in_the_same_trace(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    job = Job(path=None, folder=tmp_path)

    def train(name: str, steps: int, **further: Any) -> None:
        given = {"save_strategy": "steps", "save_steps": 4, "max_steps": steps, "max_grad_norm": 0.3, **settings}
        Trainer(
            model=job.model(), args=arguments(tmp_path / name, **given), train_dataset=job.items,
            eval_dataset=job.items, callbacks=[TrainerProbe(tmp_path / name / "run")],
        ).train(**further)  # fmt: skip

    train("whole", 10)
    train("cut", 7)
    train("cut", 10, resume_from_checkpoint=str(tmp_path / "cut" / "trainer" / "checkpoint-4"))
    cut = tvlars_probe.open_run(tmp_path / "cut" / "run")
    assert [segment["first_step"] for segment in cut.manifest.segments] == [0, 4]
    assert_same_rows(tmp_path / "cut" / "run", tmp_path / "whole" / "run", 0.0)
    assert cut.steps()["clip_scale"].notna().all()
    if "eval_steps" in settings:
        assert cut.epochs()["step"].tolist() == [2, 4, 6, 8, 10]


def test_what_is_logged_and_saved_at_an_epochs_end_has_its_clipping(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    given = {"logging_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2, "max_grad_norm": 0.05}
    probe = TrainerProbe(tmp_path / "r")
    Trainer(model=job.model(), args=arguments(tmp_path, **given), train_dataset=job.items, callbacks=[probe]).train()
    run = tvlars_probe.open_run(tmp_path / "r")
    logged = run.steps()[run.steps()["step"] % STEPS == STEPS - 1]
    assert logged["clip_scale"].between(0, 1, inclusive="neither").tolist() == [True, True]
    np.testing.assert_allclose(logged["grad_norm"], 0.05, rtol=1e-4)
    # The checkpoint at the end of the first epoch goes on from there.
    given["num_train_epochs"] = 3
    again = Trainer(
        model=job.model(), args=arguments(tmp_path, **given), train_dataset=job.items,
        callbacks=[TrainerProbe(tmp_path / "r")],
    )  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "trainer" / f"checkpoint-{STEPS}"))
    run = tvlars_probe.open_run(tmp_path / "r")
    assert [segment["first_step"] for segment in run.manifest.segments] == [0, STEPS]
    assert run.steps()["step"].tolist() == [*range(3 * STEPS)]


def test_a_recording_in_a_folder_of_its_own_goes_on_there(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("somebody's")
    job = Job(path=None, folder=tmp_path)
    for resumes in (False, True):
        Trainer(
            model=job.model(), args=arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=job.items,
            callbacks=[TrainerProbe(tmp_path / "r", exists="new")],
        ).train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4") if resumes else None)  # fmt: skip
    run = tvlars_probe.open_run(tmp_path / "r-2")
    assert [segment["first_step"] for segment in run.manifest.segments] == [0, 4]
    assert run.steps()["step"].tolist() == [*range(STEPS)]
    assert not (tmp_path / "r-3").exists()


def test_a_trainer_that_never_logs_keeps_no_losses(tmp_path: Path) -> None:
    class Counting(TrainerProbe):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_step_end(*args, **kwargs)
            alive.append(sum(isinstance(one, Tensor) and one.ndim == 0 for one in gc.get_objects()))

    job, alive = Job(path=None, folder=tmp_path), list[int]()
    Trainer(
        model=job.model(), args=arguments(tmp_path, logging_strategy="no", num_train_epochs=3), train_dataset=job.items,
        callbacks=[Counting(tmp_path / "r")],
    ).train()  # fmt: skip
    assert alive[-1] <= alive[2] + 3


def test_a_checkpoint_without_a_recording_is_refused(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    given = arguments(tmp_path, save_strategy="steps", save_steps=4, max_steps=6)
    Trainer(model=job.model(), args=given, train_dataset=job.items).train()
    trainer = Trainer(model=job.model(), args=given, train_dataset=job.items, callbacks=[TrainerProbe(tmp_path / "r")])
    with pytest.raises(UserError, match="of step 4, holds no recording of"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4"))
    assert not (tmp_path / "r").exists()


def smoothed(job: Job, folder: Path) -> Trainer:
    class Configured(type(job.model())):  # type: ignore[misc]
        config = type("Config", (), {"problem_type": None})()

    model = Configured()
    return Trainer(
        model=model, args=arguments(folder, label_smoothing_factor=0.1), train_dataset=job.items,
        callbacks=[TrainerProbe(folder / "r")],
    )  # fmt: skip


class Doubling(Trainer):
    """A user's own loss, of which the model knows nothing."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        return (2 * outputs["loss"], outputs) if return_outputs else 2 * outputs["loss"]


def of_a_function(job: Job, folder: Path) -> Trainer:
    return Trainer(
        model=job.model(), args=arguments(folder), train_dataset=job.items, callbacks=[TrainerProbe(folder / "r")],
        compute_loss_func=lambda outputs, labels, num_items_in_batch: F.cross_entropy(outputs["logits"], labels),
    )  # fmt: skip


def doubling(job: Job, folder: Path) -> Trainer:
    return Doubling(
        model=job.model(), args=arguments(folder), train_dataset=job.items, callbacks=[TrainerProbe(folder / "r")]
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [(smoothed, "the model returned none"), (of_a_function, "the model returned none"), (doubling, "descended")],
)
def test_a_loss_that_is_made_elsewhere_is_null_and_told_of_once(make: Any, told: str, tmp_path: Path) -> None:
    trainer = make(Job(path=None, folder=tmp_path), tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    texts = [str(one.message) for one in caught if "TrainerProbe" in str(one.message)]
    assert len(texts) == 1
    assert told in texts[0]
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["loss"].iloc[1:].isna().all()
    assert texts[0] in run.manifest.notes
    assert run.layers()["grad_norm"].notna().all()


def test_without_an_optimizer_it_is_refused_by_name(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    trainer = Trainer(model=job.model(), args=arguments(tmp_path), train_dataset=job.items)
    with pytest.raises(UserError, match="no optimizer"):
        TrainerProbe(tmp_path / "r").on_train_begin(
            trainer.args, trainer.state, trainer.control, model=trainer.model, optimizer=None
        )
    assert not (tmp_path / "r").exists()


def test_a_second_training_after_one_that_raised_ends_the_first_recording(tmp_path: Path) -> None:
    """As in a notebook: the same callback, another cell."""
    job = Job(path=None, folder=tmp_path)
    probe = TrainerProbe(tmp_path / "r", exists="new")
    for fault in ((3 * BATCH, ZeroDivisionError()), None):
        items: Dataset[Any] = Items(BATCH * STEPS, fault)
        trainer = Trainer(model=job.model(), args=arguments(tmp_path), train_dataset=items, callbacks=[probe])
        if fault is None:
            trainer.train()
        else:
            with pytest.raises(ZeroDivisionError):
                trainer.train()
    runs = [tvlars_probe.open_run(tmp_path / name) for name in ("r", "r-2")]
    assert [(run.status, len(run.steps())) for run in runs] == [("interrupted", 2), ("completed", STEPS)]


class Hungry(Net):
    """A model for whose larger batches there is no memory."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if self.training and len(x) > BATCH // 2:
            raise RuntimeError("CUDA out of memory.")
        return super().forward(x, labels)


def test_a_training_that_the_trainer_begins_again_with_smaller_batches_has_a_folder_of_its_own(tmp_path: Path) -> None:
    Trainer(
        model=Hungry(), args=arguments(tmp_path, auto_find_batch_size=True), train_dataset=Items(BATCH * STEPS, None),
        callbacks=[TrainerProbe(tmp_path / "r")],
    ).train()  # fmt: skip
    runs = [tvlars_probe.open_run(path) for path in tmp_path.glob("r*")]
    assert {(run.status, len(run.steps()) > 0) for run in runs} == {("completed", True), ("interrupted", False)}


def test_a_run_in_a_folder_that_was_free_goes_on_there(tmp_path: Path) -> None:
    job = Job(path=None, folder=tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "something").touch()
    for steps, further in ((4, {}), (6, {"resume_from_checkpoint": True})):
        Trainer(
            model=job.model(), args=arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=steps),
            train_dataset=job.items, callbacks=[TrainerProbe(tmp_path / "r", exists="new")],
        ).train(**further)  # fmt: skip
    run = tvlars_probe.open_run(tmp_path / "r-2")
    assert [segment["first_step"] for segment in run.manifest.segments] == [0, 4]
    assert len(run.steps()) == 6


class Keeping:
    """A probe that keeps a tensor."""

    has_budget = False

    def __init__(self) -> None:
        self.kept = torch.zeros(0)

    def due(self, step: int) -> bool:
        return True

    def affordable(self) -> bool:
        return True

    def measure(self, step: int, phase: str, rates: Any) -> dict[str, list[Any]]:
        self.kept = torch.cat([self.kept, torch.tensor([step / 3])])
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def test_a_probe_that_keeps_tensors_goes_on(tmp_path: Path) -> None:
    job, probe = Job(path=None, folder=tmp_path), Keeping()
    for steps, further in ((4, {}), (6, {"resume_from_checkpoint": True})):
        probe = Keeping()
        Trainer(
            model=job.model(), args=arguments(tmp_path, save_strategy="steps", save_steps=4, max_steps=steps),
            train_dataset=job.items, callbacks=[TrainerProbe(tmp_path / "r", probes=[probe])],
        ).train(**further)  # fmt: skip
    assert torch.equal(probe.kept, torch.arange(6) / 3)


def test_a_model_that_is_called_twice_for_a_batch_has_no_loss_and_counts_no_sample_twice(tmp_path: Path) -> None:
    class Twice(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return (model(**inputs)["loss"] + model(**inputs)["loss"]) / 2

    trainer = Twice(
        model=Job(path=None, folder=tmp_path).model(), args=arguments(tmp_path, gradient_accumulation_steps=2),
        train_dataset=Items(BATCH * STEPS, None), callbacks=[TrainerProbe(tmp_path / "r")],
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"the model was called 4 times for 2 batch\(es\)"):
        trainer.train()
    steps = tvlars_probe.open_run(tmp_path / "r").steps()
    assert steps["loss"].isna().all()
    assert steps["samples"].isna().all()


def test_metrics_that_are_no_numbers_stand_nowhere() -> None:
    told = {"eval_loss": None, "eval_accuracy": {"accuracy": 0.5}, "eval_acc": "0.5"}
    assert epoch_figures(told, {"eval": "val"}) == {}
