"""Several optimizers in one loop: whose updates a row holds, and what a loop is warned of where that can't be told."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tests.ranked import on_ranks
from tvlars_probe.probes.rows.buffer import StepBuffer
from tvlars_probe.probes.rows.telling import Telling

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe import Run

UNEQUALLY = "the recorded optimizers stepped unequally"

ITERATIONS = 6


def run_of(path: Path, script: str) -> Run:
    """Record a loop: "0" and "1" step, "l" tells as loss how often it did before, "b" begins a phase, "f" flushes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    model(torch.randn(5, 3)).square().mean().backward()
    told = 0
    with tvlars_probe.record(model, optimizers, path) as rec:
        for event in script:
            if event in "01":
                optimizers[int(event)].step()
            elif event == "l":
                rec.log(loss=float(told), samples=1)
                told += 1
            elif event == "b":
                rec.begin_phase(f"phase{rec.step}", model, optimizers)
            elif event == "f":
                rec.flush()
            else:
                raise ValueError("the loop fails")
    return tvlars_probe.open_run(path)


def rows_of(run: Run) -> list[tuple[str, float | None]]:
    """Per row of the trace, whose updates it holds, and its loss."""
    layers = run.layers(["step", "parameter"]).astype({"parameter": str})
    held = layers.groupby("step")["parameter"].apply(lambda names: "".join(sorted(name[0] for name in names)))
    losses = run.steps(["loss"])["loss"]
    return [(held.get(t, ""), None if loss != loss else loss) for t, loss in enumerate(losses)]


@pytest.mark.parametrize(
    "pattern",
    [
        ("01",), ("10",), ("0", "01"), ("0", "10"), ("0", "1"), ("0", "0", "1"), ("10", "01"), ("0", "1", "01"), ("1",),
        ("", "0", "1", ""), ("01", ""),
    ],
    ids=lambda pattern: "|".join(pattern),
)  # fmt: skip
def test_where_every_iteration_is_told_a_row_is_an_iteration(pattern: tuple[str, ...], tmp_path: Path) -> None:
    iterations = [pattern[t % len(pattern)] for t in range(ITERATIONS)]
    run = run_of(tmp_path / "r", "".join(steps + "l" for steps in iterations))
    # An iteration in which nothing steps, as where a gradient scaler skips all, has no row.
    assert rows_of(run) == [("".join(sorted(steps)), float(t)) for t, steps in enumerate(iterations) if steps]
    assert run.manifest.notes == []


@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("0101", [("01", None)] * 2),
        ("01010l" + "1", [("01", None)] * 2 + [("0", 0.0), ("1", None)]),
        ("0101l" * 2, [("01", None), ("01", 0.0), ("01", None), ("01", 1.0)]),
        ("000", [("0", None)] * 3),
        ("01lb10lb0l1l", [("01", 0.0), ("01", 1.0), ("0", 2.0), ("1", 3.0)]),
    ],
)
def test_what_is_told_less_often_has_a_row_for_an_update_of_each(
    script: str, rows: list[tuple[str, float | None]], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore" if script.endswith("l1") else "error", message=UNEQUALLY)
        assert rows_of(run_of(tmp_path / "r", script)) == rows


@pytest.mark.parametrize(
    "script",
    [
        "0" "01" "0" "01",  # never told: the rarer one last,
        "0" "10" "0" "10",  # or first, which joins two iterations
        "0" "0" "1" * 3,
        "001l" * 3,  # one that steps twice before each telling
        "000001l" * 2,
        "0l1" * 3,  # told between the steps of an iteration
        "0" "1" "0l" "1" "0" "1l",  # by turns, told every third time
        "0" "10l" * 2,  # told every second time
        "0f1l01l",  # written in the midst of an iteration
        "0" "01" "b01l",  # unclear in the first phase only
    ],
)  # fmt: skip
def test_where_iterations_cannot_be_told_apart_the_loop_is_warned(script: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"{UNEQUALLY}.*Call rec.log.. once an iteration"):
        run = run_of(tmp_path / "r", script)
    (note,) = run.manifest.notes
    assert note.startswith(UNEQUALLY)
    assert run.status == "completed"


def test_an_iteration_that_raises_midway_is_none_to_warn_of(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loop fails"):
        run_of(tmp_path / "r", "01l" * 2 + "0x")
    run = tvlars_probe.open_run(tmp_path / "r")
    assert rows_of(run)[-1] == ("0", None)
    assert not [note for note in run.manifest.notes if note.startswith(UNEQUALLY)]


@pytest.mark.parametrize("late", ["f", "b"])
def test_what_is_told_after_the_row_was_written_is_warned_of(late: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 call\(s\) of rec.log\(\) came after flush"):
        run = run_of(tmp_path / "r", f"01l01{late}l01l")
    assert rows_of(run) == [("01", 0.0), ("01", None), ("01", 2.0)]


@pytest.mark.parametrize(("script", "told"), [("01l" * 2 + "l" * 3, 3), ("01l" + "l" * 4 + "b" + "01l", 4)])
def test_where_the_last_calls_tell_of_no_step_the_loop_is_warned(script: str, told: int, tmp_path: Path) -> None:
    """As where a new optimizer takes over, whose steps nobody sees."""
    with pytest.warns(UserWarning, match=f"the last {told} calls of rec.log.. told of no step .* rec.begin_phase"):
        run = run_of(tmp_path / "r", script)
    assert len(run.manifest.notes) == 1


@pytest.mark.parametrize("script", ["lll0l" + "lll", "01l" + "ll"], ids=["accumulating", "skipped"])
def test_calls_between_the_steps_of_an_accumulating_loop_are_none_to_warn_of(script: str, tmp_path: Path) -> None:
    assert run_of(tmp_path / "r", script).manifest.notes == []


def test_a_scaler_that_skips_one_of_two_optimizers_takes_its_update_alone(tmp_path: Path) -> None:
    model = net()
    optimizers = [torch.optim.SGD(model[k].parameters(), 0.1, fused=True) for k in (0, 4)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    skips = {1: [0], 2: [4], 3: [0, 4]}
    with tvlars_probe.record(model, optimizers, tmp_path / "r") as rec:
        for step in range(5):
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1])
            scaler.scale(loss).backward()
            for layer in skips.get(step, []):
                model[layer].weight.grad.fill_(torch.inf)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            rec.log(loss=float(step))
            assert rec.step == step + (step < 3)
    layers = tvlars_probe.open_run(tmp_path / "r").layers().astype({"parameter": str})
    held = layers.groupby("step")["parameter"].apply(lambda names: {name[0] for name in names}).tolist()
    assert held == [{"0", "4"}, {"4"}, {"0"}, {"0", "4"}]
    assert tvlars_probe.open_run(tmp_path / "r").steps()["loss"].tolist() == [0.0, 1.0, 2.0, 4.0]


@pytest.mark.filterwarnings("ignore:what .* does to a rate")
def test_an_optimizer_that_ignores_its_closure_shares_the_row_of_its_iteration(tmp_path: Path) -> None:
    class Ignoring(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step()

    model = net()
    plain, ignoring = OPTIMIZERS["sgd"](model[:2].parameters()), Ignoring(model[4].parameters(), lr=0.1)
    nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    with tvlars_probe.record(model, [plain, ignoring], tmp_path / "r") as rec:
        for step in range(4):
            plain.step()
            ignoring.step(lambda: torch.zeros(()))
            rec.log(loss=float(step))
    assert tvlars_probe.open_run(tmp_path / "r").steps()["loss"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_skipped_update_that_a_flush_takes_out_makes_no_order_differ() -> None:
    """Of two fused optimizers a scaler skips one: the row loses that update after the loop has gone on."""
    telling, buffer = Telling(), StepBuffer([0, 0, 0], torch.device("cpu"))
    for _ in range(2):
        row = buffer.open_row(recorded=True, phase="train")
        row.stepped[:] = [0, 1]
        telling.row_ends(row)
        row.stepped.remove(1)
    assert [*telling.warnings(2, None)] == []


@pytest.mark.filterwarnings("ignore:what LBFGS does")
def test_a_step_with_a_closure_belongs_to_the_row_of_its_iteration(tmp_path: Path) -> None:
    model = net()
    plain, searching = OPTIMIZERS["sgd"](model[:2].parameters()), torch.optim.LBFGS(model[4].parameters(), max_iter=3)

    def closure() -> Tensor:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1])
        loss.backward()
        return loss

    closure()
    with tvlars_probe.record(model, [plain, searching], tmp_path / "r") as rec:
        for step in range(4):
            if step % 2:
                plain.step()
            searching.step(closure)
            rec.log(loss=float(step))
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["loss"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert run.layers().groupby("step").size().tolist() == [2, 6, 2, 6]


@pytest.mark.filterwarnings(f"ignore:{UNEQUALLY}")
def test_a_group_that_joins_between_two_steps_of_an_iteration_shifts_no_figure(tmp_path: Path) -> None:
    model = net()
    first, second = (torch.optim.SGD([p], lr=0.1) for p in (model[0].weight, model[0].bias))
    with tvlars_probe.record(model, [first, second], tmp_path / "r") as rec:
        for step in range(3):
            nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            second.step()
            if step == 1:
                first.add_param_group({"params": [model[4].weight], "lr": 0.5})
            first.step()
            rec.log(loss=float(step))
    rows = tvlars_probe.open_run(tmp_path / "r").layers().astype({"parameter": str})
    assert rows["grad_norm"].notna().all()
    assert {*rows[rows["parameter"] == "4.weight"]["lr"]} == {0.5}
    assert {*rows[rows["parameter"] == "0.bias"]["lr"]} == {np.float32(0.1)}


def test_the_weights_of_an_optimizer_that_steps_by_turns_are_copied_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvlars_probe.probes.readers.norms.SNAPSHOT_ELEMENTS", 1)
    model = net()
    optimizers = [torch.optim.AdamW(model[k].parameters(), lr=0.1) for k in (0, 4)]
    with tvlars_probe.record(model, optimizers, tmp_path / "r") as rec:
        for step in range(40):
            model.zero_grad()
            nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
            optimizers[step % 2].step()
            rec.log()
    read = tvlars_probe.open_run(tmp_path / "r").layers().dropna(subset="update_norm").astype({"parameter": str})
    assert read[read["parameter"] == "0.weight"]["step"].tolist() == [0, 10, 20, 30]
    assert read[read["parameter"] == "4.weight"]["step"].tolist() == [11, 21, 31]


def by_turns(rank: int, world_size: int, path: str) -> list[float]:
    model = net()
    optimizers = [torch.optim.SGD(model[k].parameters(), lr=0.1) for k in (0, 4)]
    with tvlars_probe.record(model, optimizers, path) as rec:
        for step in range(6):
            model.zero_grad()
            nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizers[step % 2].step()
            rec.log(loss=float(step + rank), samples=1)
            if step == 3:
                rec.flush()
        return [float(rec.step)]


def test_ranks_whose_optimizers_step_by_turns_agree_on_the_rows(tmp_path: Path) -> None:
    assert on_ranks(by_turns, 2, tmp_path, str(tmp_path / "r")) == [[6.0], [6.0]]
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["loss"].tolist() == [step + 0.5 for step in range(6)]
    assert run.steps()["samples"].tolist() == [2 * step for step in range(1, 7)]
    assert run.layers().groupby("step")["parameter"].nunique().tolist() == [2] * 6


def test_one_optimizer_has_a_row_an_update_wherever_it_is_told(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3))
        rec.log(loss=1.0)
        rec.log(loss=2.0)  # of a micro-batch: nothing has stepped since
        loop(model, optimizer, range(2))
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["loss"].fillna(-1).tolist() == [-1, -1, 1, -1, -1]
    assert run.manifest.notes == []
