"""The table ``noise`` of loops whose backward passes aren't one a micro-batch: right figures, or a reason for none."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.oracles.noise import of_pieces
from tests.probes.test_noise_recording import SIZES, assert_found, expected, net, piece, rows, train
from tests.ranked import on_ranks

if TYPE_CHECKING:
    from pathlib import Path


def note(path: Path) -> str:
    (found,) = tvlars_probe.open_run(path).manifest.notes
    return found


def passes(model: nn.Module, step: int, sizes: tuple[int, ...] = SIZES) -> None:
    for k, size in enumerate(sizes):
        x, y = piece(step, k, size)
        (F.cross_entropy(model(x), y) / len(sizes)).backward()


def test_two_losses_of_one_forward_pass_are_no_two_pieces(tmp_path: Path) -> None:
    def twice(loss: Tensor, _: int) -> None:
        (loss / 2).backward(retain_graph=True)
        (loss / 2).backward()

    train(net(), tmp_path / "r", backward=twice)
    assert not len(rows(tmp_path / "r"))
    assert "more backward passes than forward passes" in note(tmp_path / "r")


def test_a_penalty_with_a_backward_pass_of_its_own_is_no_piece(tmp_path: Path) -> None:
    model = net()

    def penalty(_: Any) -> None:
        (1e-3 * sum(p.square().sum() for p in model.parameters())).backward()  # type: ignore[union-attr]

    train(model, tmp_path / "r", before_step=penalty)
    assert not len(rows(tmp_path / "r"))
    assert "isn't known of 3 recorded step(s)" in note(tmp_path / "r")


def test_a_backward_pass_that_raised_is_forgotten(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def out_of_memory(_: Tensor) -> None:
        raise RuntimeError("out of memory")

    wanted = []
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for step in range(4):
            if step == 1:
                # A tensor of the last layer has its gradient already when the pass raises.
                handle = model[1].register_forward_hook(lambda *told: told[2].register_hook(out_of_memory) and None)  # type: ignore[index]
                with contextlib.suppress(RuntimeError):
                    passes(model, 99)
                handle.remove()
            optimizer.zero_grad()
            wanted.append(expected(copy.deepcopy(model), step))
            passes(model, step)
            optimizer.step()
            rec.log(samples=32)
    assert_found(tmp_path / "r", wanted)


class SamplesSecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[0].T)  # type: ignore[no-any-return]


@pytest.mark.parametrize("tells", [False, True], ids=["untold", "told"])
def test_a_size_that_the_loop_contradicts_is_not_believed(tells: bool, tmp_path: Path) -> None:
    model = SamplesSecond()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        wanted = expected(copy.deepcopy(model.inner), 0)["all"]
        for k, size in enumerate(SIZES):
            x, y = piece(0, k, size)
            if tells:
                rec.note_piece(samples=size)
            (F.cross_entropy(model(x.T[None]), y) / 4).backward()
        optimizer.step()
        rec.log(samples=32)
    if not tells:
        assert not len(rows(tmp_path / "r"))
        assert "rec.log(samples=...) told another number of samples" in note(tmp_path / "r")
        return
    row = rows(tmp_path / "r").loc[0, "all"]
    assert (row.gradient_square, row.noise_trace) == pytest.approx(wanted)
    assert row.samples == 32


def test_each_optimizers_tensors_have_its_own_pieces(tmp_path: Path) -> None:
    one, two = net(), net()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.0) for each in (one, two)]
    with tvlars_probe.record(nn.ModuleList([one, two]), optimizers, tmp_path / "r", noise=True) as rec:
        for step in range(2):
            passes(two, 0)
            optimizers[1].step()
            optimizers[1].zero_grad()
            if step:  # the first optimizer has no update in the first row, and one of half the batch in the second
                rec.note_piece(samples=8)
                rec.note_piece(samples=8)
                passes(one, 0, SIZES[:2])
                optimizers[0].step()
            rec.log(samples=32)
    found = rows(tmp_path / "r")
    first = found.loc[0]
    assert (first.pieces == 4).all()
    assert (first.samples == 32).all()
    assert first.loc["all"].noise_trace == pytest.approx(expected(two, 0)["all"][1])
    second = found.loc[1]
    assert "all" not in second.index  # of which batch would it be?
    assert second.loc["0.0.weight"][["pieces", "samples"]].tolist() == [2, 16]
    assert second.loc["1.0.weight"][["pieces", "samples"]].tolist() == [4, 32]
    assert second.loc["0.0.weight"].noise_trace == pytest.approx(expected(one, 0, SIZES[:2])["0.weight"][1])
    assert "batches of different size" in note(tmp_path / "r")


def test_a_layer_is_read_from_the_step_in_which_it_is_unfrozen(tmp_path: Path) -> None:
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for step in range(3):
            model[0].requires_grad_(step > 0)  # type: ignore[index]
            optimizer.zero_grad()
            passes(model, step)
            optimizer.step()
            rec.log(samples=32)
    found = rows(tmp_path / "r")
    wanted = [expected(model, step) for step in (1, 2)]
    assert [len(found.loc[step]) for step in range(3)] == [3, 5, 5]
    assert [found.loc[step, "all"].noise_trace for step in (1, 2)] == pytest.approx([each["all"][1] for each in wanted])


def test_copies_and_pickles_of_the_model_hold_nothing_of_the_recorder(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        passes(model, 0)
        optimizer.step()
        rec.log(samples=32)
        file = io.BytesIO()
        torch.save(model, file)
        copied = copy.deepcopy(model)
    assert b"tvlars_probe" not in file.getvalue()
    file.seek(0)
    x, _ = piece(0, 0, 8)
    for each in (copied, torch.load(file, weights_only=False)):
        assert torch.equal(each(x), model(x))
        assert [type(hook.__self__) for hook in each._forward_pre_hooks.values()] == [contextlib.nullcontext]


class OfAFunction(nn.Module):
    """What it is given tells no size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, give: Any) -> Tensor:
        return self.inner(give())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("pieces", "samples", "reason"),
    [
        ([], 3, "sizes of their pieces aren't known"),  # of four pieces
        (
            [{"samples": 8, "weight": 0}, *[{"samples": 8, "weight": 1}] * 3],
            32,
            "isn't the mean of the pieces' gradients",
        ),
        ([*[{"samples": 8}] * 2, *[{"tokens": 8}] * 2], 32, "differ in size"),
    ],
    ids=["fewer samples than pieces", "a gradient of no weight", "two units"],
)
def test_what_cannot_be_so_gives_no_rows_and_the_reason(
    pieces: list[dict[str, Any]], samples: int, reason: str, tmp_path: Path
) -> None:
    model = OfAFunction()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for k, size in enumerate(SIZES):
            x, y = piece(0, k, size)
            (F.cross_entropy(model(lambda x=x: x), y) / 4).backward()
        for told in pieces:
            rec.note_piece(**told)
        optimizer.step()
        rec.log(samples=samples)
    assert not len(tvlars_probe.open_run(tmp_path / "r").noise())
    assert reason in note(tmp_path / "r")


def uneven(rank: int, _: int, path: str) -> tuple[float, float]:
    """Three pieces on rank 0 and two on rank 1, without and with weights; returns what the pieces of one rank give."""
    mine = [(0, 0), (0, 1), (0, 2)] if rank == 0 else [(0, 3), (0, 4)]
    model = net()
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for told in (False, True):
        optimizer.zero_grad()
        with tvlars_probe.record(ddp, optimizer, f"{path}/{told}", noise=True) as rec:
            for i, (step, k) in enumerate(mine):
                x, y = piece(step, k, 8)
                with contextlib.nullcontext() if i == len(mine) - 1 else ddp.no_sync():
                    (F.cross_entropy(ddp(x), y) / 5).backward()  # the mean over both ranks' pieces, but for a factor
                if told:
                    rec.note_piece(samples=8, weight=1)
            optimizer.step()
            rec.log(samples=8 * len(mine))
    grads = []
    for k in range(5):
        x, y = piece(0, k, 8)
        each = torch.autograd.grad(F.cross_entropy(model(x), y), [*model.parameters()])
        grads.append(torch.cat([g.flatten() for g in each]) / 2)  # DDP takes the mean over two ranks
    return of_pieces(grads, [8] * 5)


def test_ranks_of_unequal_numbers_of_pieces_need_weights(tmp_path: Path) -> None:
    wanted = on_ranks(uneven, 2, tmp_path, str(tmp_path))[0]
    assert not len(rows(tmp_path / "False"))
    assert "their number from rank to rank" in note(tmp_path / "False")
    row = rows(tmp_path / "True").loc[0, "all"]
    assert (row.gradient_square, row.noise_trace) == pytest.approx(wanted)
