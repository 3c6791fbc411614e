"""The table ``noise`` of plain loops: against the variance of the pieces' own gradients, in float64."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tvlars_probe
from tests.oracles.noise import of_pieces
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SIZES = (8, 8, 8, 8)


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def piece(step: int, k: int, size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + k)
    return torch.randn(size, 5, generator=generator, dtype=dtype), torch.randint(3, (size,), generator=generator)


def expected(model: nn.Module, step: int, sizes: Sequence[int] = SIZES) -> dict[str, tuple[float, float]]:
    """By tensor, and for all: |G|² and tr Σ at the model's weights."""
    dtype = next(model.parameters()).dtype
    grads = []
    for k, size in enumerate(sizes):
        x, y = piece(step, k, size, dtype)
        grads.append(torch.autograd.grad(F.cross_entropy(model(x), y), [*model.parameters()]))
    found = {
        name: of_pieces(pieces, sizes) for (name, _), *pieces in zip(model.named_parameters(), *grads, strict=True)
    }
    return {**found, "all": tuple(np.sum([*found.values()], axis=0).tolist())}


def train(
    model: nn.Module,
    path: Path,
    *,
    sizes: Sequence[int] = SIZES,
    steps: int = 3,
    backward: Callable[[Tensor, int], Any] | None = None,
    before_step: Callable[[Any], Any] = lambda rec: None,
    tell: bool = False,
    **settings: Any,
) -> list[dict[str, tuple[float, float]]]:
    """Record a loop with the mean loss over all samples of a step, and return what each step's pieces should give."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    total, wanted = sum(sizes), []
    dtype = next(model.parameters()).dtype
    with tvlars_probe.record(model, optimizer, path, noise=True, **settings) as rec:
        for step in range(steps):
            wanted.append(expected(copy.deepcopy(model), step, sizes))
            optimizer.zero_grad()
            for k, size in enumerate(sizes):
                x, y = piece(step, k, size, dtype)
                if tell:
                    rec.note_piece(samples=size, weight=size)
                loss = F.cross_entropy(model(x), y) * size / total
                loss.backward() if backward is None else backward(loss, k)
            before_step(rec)
            optimizer.step()
            rec.log(loss=loss, samples=total)
    return wanted


def rows(path: Path) -> Any:
    return tvlars_probe.open_run(path).noise().set_index(["step", "scope"])


def assert_found(path: Path, wanted: list[dict[str, tuple[float, float]]], rtol: float = 1e-9) -> None:
    found = rows(path)
    assert len(found) == sum(map(len, wanted))
    for step, figures in enumerate(wanted):
        for scope, (signal, trace) in figures.items():
            row = found.loc[step, scope]
            assert row.noise_trace == pytest.approx(trace, rel=rtol)
            assert row.gradient_square == pytest.approx(signal, rel=rtol, abs=rtol * trace)


def test_micro_batches_of_one_size_need_nothing_told(tmp_path: Path) -> None:
    assert_found(tmp_path / "r", train(net(), tmp_path / "r"))
    row = rows(tmp_path / "r").loc[0, "all"]
    assert (row.source, row.scope_kind, row.phase, row.unit) == ("training", "all", "train", "samples")
    assert (row.pieces, row.piece_size, row.samples, row.precision) == (4, 8.0, 32, "float64")


def test_sizes_may_differ_where_they_are_told(tmp_path: Path) -> None:
    sizes = (3, 9, 1, 6)
    assert_found(tmp_path / "r", train(net(), tmp_path / "r", sizes=sizes, tell=True))
    assert rows(tmp_path / "r").loc[0, "all"].piece_size == pytest.approx(19 / 4)


def test_sizes_that_differ_untold_give_no_rows_and_a_note(tmp_path: Path) -> None:
    train(net(), tmp_path / "r", sizes=(8, 8, 3))
    assert not len(rows(tmp_path / "r"))
    (note,) = tvlars_probe.open_run(tmp_path / "r").manifest.notes
    assert "isn't known of 3 recorded step(s)" in note
    assert "rec.note_piece(samples=n, weight=...)" in note


def test_pieces_may_weigh_alike_whatever_their_size(tmp_path: Path) -> None:
    """Each piece's mean loss divided by their number, as many a loop does it: both estimates stay unbiased."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    signals, traces, sizes = [], [], (2, 10)
    weights, bias = torch.linspace(-1, 1, 5, dtype=torch.float64), 0.3
    linear = nn.Linear(5, 1).double()
    with torch.no_grad():
        linear.weight.copy_(weights[None])
        linear.bias.fill_(bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(1)
    with tvlars_probe.record(linear, optimizer, tmp_path / "r", noise=True) as rec:
        for _ in range(3000):
            optimizer.zero_grad()
            for size in sizes:
                x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
                rec.note_piece(samples=size, weight=1.0)
                (linear(x).square().mean() / 2 / len(sizes)).backward()
            optimizer.step()
            rec.log(samples=sum(sizes))
    found = rows(tmp_path / "r").xs("all", level="scope")
    signals, traces = found.gradient_square.to_numpy(), found.noise_trace.to_numpy()
    # g(x) = (w·x + b)(x, 1) with x standard normal: E g = (w, b), and E|g|² = E (w·x + b)²(|x|² + 1).
    w2, d = float(weights @ weights), 5
    signal, square = w2 + bias**2, w2 * (d + 2) + bias**2 * d + w2 + bias**2
    for values, truth in ((signals, signal), (traces, square - signal)):
        assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / np.sqrt(len(values))


def test_a_known_clipping_is_undone(tmp_path: Path) -> None:
    model = net()
    wanted = train(model, tmp_path / "r", before_step=lambda rec: rec.clip_grad_norm_(model.parameters(), 0.01))
    assert (tvlars_probe.open_run(tmp_path / "r").steps().clip_scale < 0.2).all()
    assert_found(tmp_path / "r", wanted)


def test_an_unknown_scale_of_the_gradient_gives_no_rows(tmp_path: Path) -> None:
    model = net()

    def scale(_: Any) -> None:
        for p in model.parameters():
            assert p.grad is not None
            p.grad *= 0.3

    train(model, tmp_path / "r", before_step=scale)
    assert not len(rows(tmp_path / "r"))
    (note,) = tvlars_probe.open_run(tmp_path / "r").manifest.notes
    assert "rec.clip_grad_norm_" in note


@pytest.mark.parametrize("by", ["pieces", "samples"])
def test_a_gradient_may_be_divided_by_the_loop_itself(by: str, tmp_path: Path) -> None:
    """Sums of the pieces' mean losses, or of the samples' losses, are divided after the last backward pass."""
    model, sizes = net(), (6, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wanted = [expected(copy.deepcopy(model), 0, sizes)]
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for k, size in enumerate(sizes):
            x, y = piece(0, k, size)
            F.cross_entropy(model(x), y, reduction="mean" if by == "pieces" else "sum").backward()
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= len(sizes) if by == "pieces" else sum(sizes)
        optimizer.step()
        rec.log(samples=sum(sizes))
    assert_found(tmp_path / "r", wanted)


def test_a_gradient_made_of_something_else_gives_no_rows(tmp_path: Path) -> None:
    model = net()

    def disturb(_: Any) -> None:
        grad = next(model.parameters()).grad
        assert grad is not None
        grad += 0.1

    train(model, tmp_path / "r", before_step=disturb)
    assert "0.weight" not in rows(tmp_path / "r").index.get_level_values("scope")
    assert "isn't the mean of the pieces' gradients" in tvlars_probe.open_run(tmp_path / "r").manifest.notes[0]


@pytest.mark.parametrize("skips", [False, True])
def test_a_gradient_scaler_is_seen_through(skips: bool, tmp_path: Path) -> None:
    model = net(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        wanted = []
        for step in range(4):
            here = expected(copy.deepcopy(model), step)
            optimizer.zero_grad()
            for k, size in enumerate(SIZES):
                x, y = piece(step, k, size, torch.float32)
                loss = F.cross_entropy(model(x), y) / len(SIZES)
                scaler.scale(loss * float("inf") if skips and step == 0 and k == 1 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if not (skips and step == 0):
                wanted.append(here)
            rec.log(samples=32)
    # The pieces of a step that was skipped are added to the next one's, which has no rows then.
    found = rows(tmp_path / "r")
    first = int(skips)
    assert {*found.index.get_level_values("step")} == {*range(first, len(wanted))}
    for step, figures in [*enumerate(wanted)][first:]:
        assert found.loc[step, "all"].noise_trace == pytest.approx(figures["all"][1], rel=1e-4)


def test_frozen_tensors_and_tensors_without_gradient_have_no_row(tmp_path: Path) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused = net(), nn.Linear(2, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)  # type: ignore[no-any-return]

    model = Partly()
    model.body[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for step in range(4):
            optimizer.zero_grad()
            for k, size in enumerate(SIZES):
                x, y = piece(step, k, size)
                (F.cross_entropy(model(x), y) / 4).backward()
            optimizer.step()
            rec.log(samples=32)
            if step == 1:
                rec.flush()
                model.body[0].bias.requires_grad_(True)  # type: ignore[index,union-attr]
                rec.flush()
    found = rows(tmp_path / "r")
    weights = {"body.0.weight", "body.2.weight", "body.2.bias"}
    assert {*found.loc[0].index} == {*weights, "all"}
    assert {*found.loc[3].index} == {*weights, "body.0.bias", "all"}


def test_only_recorded_steps_are_read(tmp_path: Path) -> None:
    wanted = train(net(), tmp_path / "r", steps=5, every=2)
    found = rows(tmp_path / "r")
    assert sorted({*found.index.get_level_values("step")}) == [0, 2, 4]
    assert found.loc[4, "all"].noise_trace == pytest.approx(wanted[4]["all"][1], rel=1e-9)


def test_one_piece_a_step_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"accumulate the gradient of several micro-batches.*NoiseProbe"):
        train(net(), tmp_path / "r", sizes=(32,))


def test_a_later_step_of_one_piece_has_no_row(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for step in range(2):
            optimizer.zero_grad()
            for k in range(2 - step):
                x, y = piece(step, k, 8)
                (F.cross_entropy(model(x), y) / (2 - step)).backward()
            optimizer.step()
            rec.log(samples=16 - 8 * step)
    assert {*rows(tmp_path / "r").index.get_level_values("step")} == {0}
    assert "one piece only" in tvlars_probe.open_run(tmp_path / "r").manifest.notes[0]


def test_the_note_of_a_resumed_run_is_of_the_whole_run(tmp_path: Path) -> None:
    def steps(rec: Any, count: int) -> None:
        for _ in range(count):
            for k, size in enumerate((8, 8, 3)):  # untold sizes
                x, y = piece(0, k, size)
                (F.cross_entropy(model(x), y) / 3).backward()
            optimizer.step()
            rec.log(samples=19)

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        steps(rec, 3)
        state = rec.state_dict()
        steps(rec, 1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True, resume=state) as rec:
        steps(rec, 2)
    (note,) = tvlars_probe.open_run(tmp_path / "r").manifest.notes
    assert "isn't known of 5 recorded step(s)" in note


def test_gradients_that_are_only_returned_are_no_pieces(tmp_path: Path) -> None:
    model = net()

    def with_penalty(loss: Tensor, _: int) -> None:
        torch.autograd.grad(loss, [*model.parameters()], create_graph=True)
        loss.backward()

    assert_found(tmp_path / "r", train(model, tmp_path / "r", backward=with_penalty))


def test_two_optimizers_share_the_pieces(tmp_path: Path) -> None:
    model = net()
    one = torch.optim.SGD(model[0].parameters(), lr=0.1)  # type: ignore[index]
    two = torch.optim.Adam(model[2].parameters(), lr=0.1)  # type: ignore[index]
    with tvlars_probe.record(model, [one, two], tmp_path / "r", noise=True) as rec:
        wanted = []
        for step in range(3):
            wanted.append(expected(copy.deepcopy(model), step))
            model.zero_grad()
            for k, size in enumerate(SIZES):
                x, y = piece(step, k, size)
                (F.cross_entropy(model(x), y) / 4).backward()
            one.step()
            two.step()
            rec.log(samples=32)
    assert_found(tmp_path / "r", wanted)


def test_the_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    models = [net(torch.float32), net(torch.float32)]
    train(models[0], tmp_path / "r")
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        for k, size in enumerate(SIZES):
            x, y = piece(step, k, size, torch.float32)
            (F.cross_entropy(models[1](x), y) * size / sum(SIZES)).backward()
        optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a._backward_hooks


def test_samples_that_are_not_told_are_seen_in_the_forward_pass(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wanted = [expected(copy.deepcopy(model), 0)]
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True):
        for k, size in enumerate(SIZES):
            x, y = piece(0, k, size)
            (F.cross_entropy(model(x), y) / 4).backward()
        optimizer.step()
    assert_found(tmp_path / "r", wanted)


def test_tokens_are_the_unit_where_they_are_told(tmp_path: Path) -> None:
    """Each sample is a text of six tokens, so that tr Σ is that of a token: six times a sample's."""
    found = {}
    for name, told in (("samples", {"samples": 32}), ("tokens", {"samples": 32, "tokens": 192})):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tvlars_probe.record(model, optimizer, tmp_path / name, noise=True) as rec:
            for k, size in enumerate(SIZES):
                x, y = piece(0, k, size)
                (F.cross_entropy(model(x), y) / 4).backward()
            optimizer.step()
            rec.log(**told)  # type: ignore[arg-type]
        found[name] = rows(tmp_path / name).loc[0, "all"]
    samples, tokens = found["samples"], found["tokens"]
    assert (tokens.unit, tokens.samples, tokens.piece_size) == ("tokens", 192, 48.0)
    assert tokens.noise_trace == pytest.approx(6 * samples.noise_trace, rel=1e-12)
    assert tokens.gradient_square == pytest.approx(samples.gradient_square, rel=1e-12)


def test_nonsense_is_refused(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="noise='yes': give True or False"):
        tvlars_probe.record(model, optimizer, tmp_path / "r", noise="yes")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="detail='none' leaves out"):
        tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True, detail="none")
    with tvlars_probe.record(model, optimizer, tmp_path / "r", noise=True) as rec:
        for wrong in ({}, {"samples": 3, "tokens": 4}, {"samples": -1}, {"samples": 2, "weight": -1.0}):
            with pytest.raises(UserError):
                rec.note_piece(**wrong)  # type: ignore[arg-type]
