"""The gradient's noise, recorded by each trainer: from micro-batches, from ranks, and from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Subset
from transformers import Trainer

import tvlars_probe
from tests.integrations.test_transformers import Sentences, arguments, language_model
from tests.integrations.trainers import BATCH, STEPS, TRAINERS, Items, Job
from tests.oracles.noise import of_pieces
from tests.ranked import on_ranks
from tvlars_probe.integrations import TrainerProbe

FIGURES = ["gradient_square", "noise_trace"]


def job(folder: Path, name: str, **settings: Any) -> Job:
    chosen: dict[str, Any] = {"max_norm": 0.3, "accumulation": 4, "options": {"noise": True}, **settings}
    return Job(path=folder / name, folder=folder, **chosen)


def noise(path: Path) -> Any:
    return tvlars_probe.open_run(path).noise().set_index(["step", "scope"]).sort_index()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_micro_batches_give_the_noise_of_their_gradients(trainer: str, tmp_path: Path) -> None:
    TRAINERS[trainer](job(tmp_path, "r"))
    found = noise(tmp_path / "r")
    assert (found.pieces == 4).all()
    assert (found.piece_size == BATCH).all()
    assert (found.unit == "samples").all()
    assert len(found) == STEPS * 5  # four tensors, and the whole
    # The first step's weights are known.
    items, model = Items(BATCH * STEPS * 4, None), job(tmp_path, "x").model()
    grads = []
    for k in range(4):
        span = slice(k * BATCH, (k + 1) * BATCH)
        loss = model(items.x[span], items.labels[span])["loss"]
        grads.append([g.double() for g in torch.autograd.grad(loss, [*model.parameters()])])
    for (name, _), *pieces in zip(model.named_parameters(), *grads, strict=True):
        row = next(found.loc[0, scope] for scope in found.loc[0].index if scope.endswith(name))
        signal, trace = of_pieces(pieces, [BATCH] * 4)
        # |G|² is a difference of larger numbers.
        assert row.gradient_square == pytest.approx(signal, rel=1e-4, abs=1e-5 * trace)
        assert row.noise_trace == pytest.approx(trace, rel=1e-5)


def test_the_trainers_agree(tmp_path: Path) -> None:
    for name, train in TRAINERS.items():
        train(job(tmp_path, name))
    expected = noise(tmp_path / "plain").loc[(slice(None), "all"), FIGURES]
    for name in TRAINERS:
        np.testing.assert_allclose(noise(tmp_path / name).loc[(slice(None), "all"), FIGURES], expected, rtol=1e-4)


def train_on_ranks(rank: int, world_size: int, folder: str) -> bool:
    for name, train in TRAINERS.items():
        train(job(Path(folder), name, ranks=world_size, accumulation=2))
    return True


def test_two_ranks_with_two_micro_batches_give_what_one_gives_with_four(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    on_ranks(train_on_ranks, 2, tmp_path / "results", str(tmp_path))
    items = Items(BATCH * STEPS * 2, None)
    # In these orders one process makes the pieces that the ranks do: some trainers give each rank every other sample,
    # others every other batch.
    shards = torch.arange(len(items)).view(-1, 2).T.reshape(2, -1, 2, BATCH)
    orders = {"samples": shards.transpose(0, 1).flatten().tolist(), "batches": [*range(len(items))]}
    for name, order in orders.items():
        TRAINERS["plain"](job(tmp_path, name, data=Subset(items, order)))
    expected = {name: noise(tmp_path / name).loc[(slice(None), "all"), FIGURES] for name in orders}
    for name in TRAINERS:
        found = noise(tmp_path / name)
        assert (found.pieces == 4).all(), name
        every_other = "batches" if name in ("accelerate", "transformers") else "samples"
        assert len(expected[every_other]) == STEPS // 2
        figures = found.loc[(slice(None), "all"), FIGURES]
        np.testing.assert_allclose(figures, expected[every_other], rtol=1e-4, err_msg=name)


def test_tokens_are_the_unit_of_a_language_model(tmp_path: Path) -> None:
    """Its micro-batches differ in the number of tokens, by which they weigh."""
    data = Sentences(4 * 12)
    Trainer(
        model=language_model(),
        args=arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3),
        train_dataset=data,
        callbacks=[TrainerProbe(tmp_path / "r", noise=True)],
    ).train()
    found = noise(tmp_path / "r")
    model, grads, tokens = language_model(), [], []
    for k in range(3):
        batch = [data[i] for i in range(4 * k, 4 * k + 4)]
        logits = model(torch.stack([one["input_ids"] for one in batch])).logits[:, :-1]
        labels = torch.stack([one["labels"] for one in batch])[:, 1:]
        loss = F.cross_entropy(logits.reshape(-1, 20), labels.reshape(-1))
        flat = torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, [*model.parameters()])])
        grads.append(flat)
        tokens.append(int((labels != -100).sum()))
    assert len({*tokens}) > 1
    row = found.loc[0, "all"]
    signal, trace = of_pieces(grads, tokens)
    assert (row.unit, row.pieces, row.samples) == ("tokens", 3, sum(tokens))
    assert row.piece_size == pytest.approx(np.mean(tokens))
    assert row.noise_trace == pytest.approx(trace, rel=1e-4)
    assert row.gradient_square == pytest.approx(signal, rel=1e-3, abs=1e-5 * trace)
