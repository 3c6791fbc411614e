"""Probes and callbacks that raise, clocks that jump, folders that vanish: in loops as strangers write them."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

import tvlars_probe
from tvlars_probe.errors import ProbeError, RunDirectoryError, StorageError, UserError
from tvlars_probe.probes.readers.norms import NormReader
from tvlars_probe.probes.rows import buffer
from tvlars_probe.traces.run_directory import RunDirectory, is_held

if TYPE_CHECKING:
    from pathlib import Path


class Callback:
    """A probe of a user's own, which raises from a step on."""

    has_budget = False

    def __init__(self, fails_at: int) -> None:
        self.fails_at = fails_at
        self.called: list[int] = []

    def due(self, step: int) -> bool:
        return True

    def affordable(self) -> bool:
        return True

    def measure(self, step: int, phase: str, rates: Any) -> dict[str, list[Any]]:
        self.called.append(step)
        if step >= self.fails_at:
            raise ZeroDivisionError("of my own making")
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, rec: Any, steps: int = 6) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        x, y = torch.randn(8, 4, generator=generator), torch.randint(0, 2, (8,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if rec is not None:
            rec.log(loss=loss, samples=8, epoch=step // 3)
            if step % 3 == 2:
                rec.log_epoch(epoch=step // 3, train_loss=loss.item())


def recorded(path: Path, **settings: Any) -> tuple[tvlars_probe.Run, nn.Module]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, path, **settings) as rec:
        loop(model, optimizer, rec)
    return tvlars_probe.open_run(path), model


def test_a_callback_that_raises_leaves_the_training_alone(tmp_path: Path) -> None:
    callback = Callback(fails_at=2)
    with pytest.warns(RuntimeWarning, match="Callback failed at step 2: ZeroDivisionError: of my own making"):
        run, model = recorded(tmp_path / "r", probes=[callback])
    assert run.status == "completed"
    assert callback.called == [0, 1, 2]
    assert run.steps()["step"].tolist() == list(range(6))  # what the loop tells goes on
    assert run.steps()["loss"].notna().all()
    assert run.epochs()["epoch"].tolist() == [0, 1]
    assert run.layers()["step"].max() == 1
    (note,) = run.manifest.notes
    assert note.startswith("Callback failed at step 2: ZeroDivisionError")
    assert [(gap.table, gap.first_step) for gap in run.manifest.gaps] == [("layers", 2), ("curvature", 2)]
    alone = net()
    loop(alone, torch.optim.SGD(alone.parameters(), 0.1), None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


def test_or_it_ends_the_run_as_asked(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="Callback failed at step 2: ZeroDivisionError"):
        recorded(tmp_path / "r", probes=[Callback(fails_at=2)], on_probe_error="raise")
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.status == "failed"
    assert run.steps()["step"].tolist() == [0, 1]
    with pytest.raises(UserError, match=r"unknown on_probe_error 'ignore' \(known: warn, raise\)"):
        recorded(tmp_path / "s", on_probe_error="ignore")


@pytest.mark.parametrize("method", ["before", "after"])
def test_norms_that_cannot_be_read_leave_the_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    read, calls = getattr(NormReader, method), iter(range(100))

    def fail(self: NormReader, *args: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("out of memory")
        return read(self, *args)

    monkeypatch.setattr(NormReader, method, fail)
    with pytest.warns(RuntimeWarning, match="reading the norms of SGD failed at step 3: RuntimeError: out of memory"):
        run, _ = recorded(tmp_path / "r")
    assert run.layers()["step"].unique().tolist() == [0, 1, 2]
    assert run.steps()["step"].tolist() == list(range(6))


def test_nan_in_one_layer_is_named_with_its_step(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4)).sum() * 0.01
            loss.backward()
            if step == 2:
                weight = model[1].weight
                assert weight.grad is not None
                weight.grad[0, 0] = float("nan")
            optimizer.step()
            rec.log(loss=loss if step < 3 else 0.0)
    finding = tvlars_probe.open_run(tmp_path / "r").manifest.finding
    assert finding is not None
    assert (finding["step"], finding["tensor"], finding["quantity"]) == (2, "1.weight", "grad_norm")


def test_a_clock_that_jumps_disorders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    hours = iter([0, 30, -50, 2, -1000, 5, 7, 1])
    monkeypatch.setattr(buffer, "now", lambda: start + datetime.timedelta(hours=next(hours)))
    rows = buffer.StepRow.__dataclass_fields__["time"]
    monkeypatch.setattr(rows, "default_factory", lambda: start)
    monkeypatch.setattr("tvlars_probe.probes.rows.steps.now", lambda: start + datetime.timedelta(hours=next(hours)))
    run, _ = recorded(tmp_path / "r")
    steps = run.steps()
    assert steps["step"].tolist() == list(range(6))
    assert not steps["time"].is_monotonic_increasing
    assert (steps["step_seconds"] >= 0).all()
    assert run.epochs()["epoch"].tolist() == [0, 1]


@pytest.mark.parametrize("how", ["removed", "replaced", "renamed"])
def test_a_run_directory_that_vanishes_is_not_made_again(tmp_path: Path, how: str) -> None:
    path, model = tmp_path / "r", net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with (
        pytest.raises(StorageError, match=f"{path} has vanished, its .lock was removed, or another folder"),
        tvlars_probe.record(model, optimizer, path) as rec,
    ):
        loop(model, optimizer, rec, steps=3)
        if how == "renamed":
            path.rename(tmp_path / "moved")
        else:
            shutil.rmtree(path)
        if how == "replaced":
            RunDirectory.create(path).release()
        rec.flush()
    assert not (path / "run.json").exists()
    assert path.exists() == (how == "replaced")
    if how == "renamed":  # what was complete stays readable
        assert tvlars_probe.open_run(tmp_path / "moved").manifest.run_id


# torch, told by a broken connection that a worker is gone, looks for free file handles with one that it never closes.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_killed_data_worker_ends_the_run_with_all_rows_and_lets_go_of_it(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32,)))
    with (
        pytest.raises((RuntimeError, ConnectionError, EOFError)),  # as torch happens to notice
        tvlars_probe.record(model, optimizer, tmp_path / "r") as rec,
    ):
        for x, y in DataLoader(data, batch_size=8, num_workers=1):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            rec.log(loss=loss)
            # Between two steps: torch raises where the signal finds the main thread, which may be anywhere.
            (worker,) = multiprocessing.active_children()
            worker.kill()
            worker.join()
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.status == "failed"
    steps = run.steps()["step"].tolist()
    assert steps == [*range(rec.step)] == [0]
    assert len(run.manifest.notes) == 1
    RunDirectory.take_over(tmp_path / "r").release()


def test_a_run_left_early_says_interrupted(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, rec, steps=2)
        rec.request_checkpoint()
        loop(model, optimizer, rec, steps=1)
        assert rec.checkpoint_agreed
        rec.state_dict()
        assert not rec.checkpoint_agreed
        rec.request_stop()
        assert rec.agree_to_stop()
        rec.interrupted = True
    assert tvlars_probe.open_run(tmp_path / "r").status == "interrupted"


class Wrong(Callback):
    """Its rows, or what else it answers, are not what they should be."""

    def __init__(self, answer: Any, *, due: Any = True, state: Any = None) -> None:
        super().__init__(fails_at=99)
        self.answer, self.is_due, self.state = answer, due, state

    def due(self, step: int) -> bool:
        if self.is_due is None and step == 3:
            raise KeyError("cadence")
        return True

    def measure(self, step: int, phase: str, rates: Any) -> Any:
        return self.answer if step == 3 else {}

    def state_dict(self) -> dict[str, Any]:
        if self.state == "fails":
            raise KeyError("state")
        return {}


@pytest.mark.parametrize(
    "probe",
    [
        Wrong({"step": [3], "value": [1.0]}),
        Wrong({"step": [3], "measurement_id": ["a"], "operator": ["hessian"], "sharpness": [1.0]}),
        Wrong({"step": [3, 3], "value": [1.0]}),
        Wrong({"step": ["three"], "value": [1.0]}),
        Wrong({"value": [1.0]}),
        Wrong(7.5),
        Wrong({}, due=None),
    ],
    ids=["missing column", "unknown column", "lengths", "types", "no step", "no columns", "due"],
)
def test_a_probe_that_answers_nonsense_costs_no_rows(probe: Any, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="Wrong failed at step 3"),
        tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[probe]) as rec,
    ):
        loop(model, optimizer, rec)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert run.status == "completed"
    assert run.steps()["step"].tolist() == [*range(6)]
    assert sorted({*run.layers()["step"]}) == [0, 1, 2]


def test_a_probe_without_a_state_leaves_one_without_probes(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run", probes=[Wrong({}, state="fails")]) as rec:
        loop(model, optimizer, rec, steps=3)
        with pytest.warns(RuntimeWarning, match=r"state_dict failed at step 3"):
            state = rec.state_dict()
    assert state["probes"] == []
    assert state["step"] == 3


class Fragile(torch.optim.SGD):
    """Calls its parent's step, or raises."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise RuntimeError("no step")
        return super().step(closure)


@pytest.mark.filterwarnings("ignore:what .* does to a rate")
def test_a_step_that_raises_leaves_no_row(tmp_path: Path) -> None:
    model = net()
    optimizer = Fragile(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        for step in range(6):
            optimizer.fails = step in (2, 5)
            try:
                loop(model, optimizer, rec, steps=1)
            except RuntimeError:
                assert optimizer.fails
    assert rec.step == 4
    assert tvlars_probe.open_run(tmp_path / "run").steps()["step"].tolist() == [*range(4)]


@pytest.mark.filterwarnings("ignore:what .* does to a rate")
def test_a_subclass_that_calls_its_parents_step_makes_one_update(tmp_path: Path) -> None:
    """torch puts hooks around both steps once an instance of the parent was made."""
    model = net()
    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Fragile(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, rec, steps=5)
        assert rec.step == 5
    assert len(tvlars_probe.open_run(tmp_path / "run").steps()) == 5


def test_a_state_of_another_run_and_what_is_no_state_are_refused(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    states = {}
    for name, steps in (("a", 2), ("b", 6)):
        with tvlars_probe.record(model, optimizer, tmp_path / name) as rec:
            loop(model, optimizer, rec, steps=steps)
            states[name] = rec.state_dict()
    with (
        pytest.raises(RunDirectoryError, match=r"b holds the run b\.\w+, and resume= is a state of .*a\."),
        tvlars_probe.record(model, optimizer, tmp_path / "b", resume=states["a"]),
    ):
        pass
    assert len(tvlars_probe.open_run(tmp_path / "b").steps()) == 6
    nonsense: Any
    for nonsense in ({}, 5, {"step": 1}):
        with pytest.raises(UserError, match=r"resume= takes what rec\.state_dict\(\) gave"):
            tvlars_probe.record(model, optimizer, tmp_path / "b", resume=nonsense)


def test_a_forked_child_that_leaves_the_block_changes_nothing(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, rec, steps=3)
        child = os.fork()
        if child == 0:
            try:
                rec.__exit__(SystemExit, SystemExit(), None)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert is_held(tmp_path / "run")
        loop(model, optimizer, rec, steps=3)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert (run.status, run.steps()["step"].tolist()) == ("completed", [*range(6)])


def test_an_interrupt_in_the_last_flush_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rec = tvlars_probe.record(model, optimizer, tmp_path / "run")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), rec:
        loop(model, optimizer, rec, steps=3)
        rec.flush()
        monkeypatch.setattr(rec._recording, "flush", interrupted)
    assert tvlars_probe.open_run(tmp_path / "run").status == "interrupted"


def test_a_trace_that_vanishes_ends_the_run_with_an_error(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(StorageError, match=r"can't write \S+trace: the rows written so far have vanished"),
        tvlars_probe.record(model, optimizer, tmp_path / "r") as rec,
    ):
        loop(model, optimizer, rec)
        rec.flush()
        shutil.rmtree(tmp_path / "r" / "trace")
        loop(model, optimizer, rec)
    assert tvlars_probe.open_run(tmp_path / "r").status == "failed"


@pytest.mark.parametrize("moment", ["before the first flush", "later"])
def test_nothing_is_written_through_a_link_or_into_another_trace(tmp_path: Path, moment: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = tmp_path / "r" / "trace"
    with (
        pytest.raises(StorageError, match=r"trace: another folder, or a link, was put in its place"),
        tvlars_probe.record(model, optimizer, tmp_path / "r") as rec,
    ):
        loop(model, optimizer, rec)
        if moment == "later":
            rec.flush()
            trace.rename(tmp_path / "old")
            shutil.copytree(tmp_path / "old", trace)
        else:
            trace.symlink_to(elsewhere)
        loop(model, optimizer, rec)
    assert not list(elsewhere.iterdir())
