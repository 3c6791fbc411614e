"""How a recording begins and ends."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tvlars_probe
from tests.optimizers.wrapping import wrapped
from tests.probes.small_loop import OPTIMIZERS, loop, net
from tests.ranked import on_ranks
from tvlars_probe.admission import limits
from tvlars_probe.collectives import Ranks
from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.probes.events.agreement import Agreement
from tvlars_probe.probes.readers.rates import applied_rates
from tvlars_probe.runners.checkpoints.checking import check_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from pathlib import Path


BEGUN = """
import torch, tvlars_probe
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rec = tvlars_probe.record(model, optimizer, 'r').__enter__()
for _ in range(5):
    model(torch.ones(1, 2)).sum().backward()
"""
"""A script's beginning: a recorder that is entered, and a loop without its update."""


def test_an_exception_keeps_the_trace_and_lets_go_of_the_optimizer(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with (
        pytest.raises(ZeroDivisionError),
        tvlars_probe.record(model, optimizer, tmp_path / "r") as rec,
    ):
        loop(model, optimizer, range(3), rec)
        raise ZeroDivisionError("mine")
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.status == "failed"
    assert run.manifest.notes == ["ZeroDivisionError: mine"]
    assert len(run.steps()) == 3
    loop(model, optimizer, range(3, 5))
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 3


@pytest.mark.parametrize(
    ("limit", "most", "config", "told"),
    [
        ("TEXT_ELEMENTS", 40, {}, "values, of 40 that it can have"),
        ("MANIFEST_BYTES", 500, {}, "bytes, of 500 that it can have"),
        ("MANIFEST_BYTES", 1 << 26, {"a": json.loads("[" * 90 + "]" * 90)}, "deep, of 64 that it can"),
        (
            "MANIFEST_BYTES",
            1 << 26,
            {"a": functools.reduce(lambda inner, _: [inner], range(5_000), 0)},
            "config nests too deep",
        ),
    ],
)
def test_no_run_begins_whose_manifest_nobody_could_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int, config: dict[str, Any], told: str
) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    monkeypatch.setattr(limits, limit, most)
    with pytest.raises(UserError, match=told):
        tvlars_probe.record(model, optimizer, tmp_path / "r", config=config).__enter__()
    assert not (tmp_path / "r").exists()
    monkeypatch.undo()
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)


def test_a_keyboard_interrupt_is_an_interruption(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with pytest.raises(KeyboardInterrupt), tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        raise KeyboardInterrupt
    assert tvlars_probe.open_run(tmp_path / "r").status == "interrupted"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r"):
        pass
    with (
        pytest.raises(RunDirectoryError, match="already holds a run: choose another folder"),
        tvlars_probe.record(model, optimizer, tmp_path / "r"),
    ):
        raise AssertionError("not reached")


def test_a_failure_at_the_last_flush_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(OSError, match="No space"), tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
        monkeypatch.setattr("tvlars_probe.traces.writer.write_part", full)
    run = tvlars_probe.open_run(tmp_path / "run")
    assert run.status == "failed"
    assert "No space left" in run.manifest.notes[-1]


def test_the_lock_is_let_go_though_a_forked_process_holds_it_too(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "run") as rec:
        loop(model, optimizer, range(2), rec)
        state = rec.state_dict()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
    with tvlars_probe.record(model, optimizer, tmp_path / "run", resume=state) as rec:
        assert rec.step == 2
    os.close(writer)
    os.waitpid(child, 0)


def test_a_recorder_is_entered_once(tmp_path: Path) -> None:
    model = net()
    with tvlars_probe.record(model, OPTIMIZERS["sgd"](model.parameters()), tmp_path / "r") as rec:
        for _ in range(2):
            with pytest.raises(UserError, match="entered before"):
                rec.__enter__()
    assert tvlars_probe.open_run(tmp_path / "r").status == "completed"


def test_a_recorder_that_is_never_left_loses_no_row(tmp_path: Path) -> None:
    script = BEGUN + "    optimizer.step()\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert "was never left: use it as a context manager" in done.stderr
    run = tvlars_probe.open_run(tmp_path / "r")
    assert (run.status, len(run.steps())) == ("interrupted", 5)


@pytest.mark.parametrize("how", ["never left", "told too early"])
def test_where_warnings_are_errors_no_row_is_lost(how: str, tmp_path: Path) -> None:
    script = (
        BEGUN + f"    {'rec.log(loss=1.0)' if how == 'told too early' else 'pass'}\n"
        "    optimizer.step()\n"
        f"{'rec.__exit__(None, None, None)' if how == 'told too early' else ''}\n"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::RuntimeWarning", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "Warning" in done.stderr
    run = tvlars_probe.open_run(tmp_path / "r")
    assert (run.status, len(run.steps())) == ("interrupted" if how == "never left" else "completed", 5)


def test_an_optimizer_that_takes_no_hooks_leaves_nothing_behind(tmp_path: Path) -> None:
    class Hookless(torch.optim.SGD):
        def register_step_pre_hook(self, hook: object) -> Any:
            raise AttributeError("no hooks here")

    model = net()
    with (
        pytest.raises(AttributeError, match="no hooks here"),
        tvlars_probe.record(model, Hookless(model.parameters(), lr=0.1), tmp_path / "r"),
    ):
        raise AssertionError("not reached")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 30.5}, "total_steps=30.5 is no count: give a whole number"),
        ({"config": 3}, "config= takes a mapping of settings to their values, got 3"),
        ({"every": 1.5}, "every=1.5: give a number of steps, a whole one of 1 or more"),
        (
            {"optimizer": torch.optim.SGD([{"params": []}], lr=0.1)},
            "SGD holds no parameter: there is nothing to record",
        ),
    ],
)
def test_what_record_cannot_use_is_refused_at_once(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = net()
    given = {"optimizer": OPTIMIZERS["sgd"](model.parameters()), **settings}
    with pytest.raises(UserError, match=message):
        tvlars_probe.record(model, path=tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


def test_a_whole_number_of_steps_may_be_a_float(tmp_path: Path) -> None:
    model = net()
    with tvlars_probe.record(model, OPTIMIZERS["sgd"](model.parameters()), tmp_path / "r", total_steps=2.0) as rec:
        loop(model, rec._recording._optimizers[0], range(2), rec)
    assert tvlars_probe.open_run(tmp_path / "r").manifest.total_steps == 2


def test_of_a_wrapper_the_optimizer_inside_is_recorded(tmp_path: Path) -> None:
    model = net()
    inner = OPTIMIZERS["lars"](model.parameters())
    wrapper = wrapped(inner)
    with tvlars_probe.record(model, wrapper, tmp_path / "r") as rec:
        loop(model, wrapper, range(2), rec)
        rec.begin_phase("linear", model, wrapped(OPTIMIZERS["sgd"](model.parameters())))
    run = tvlars_probe.open_run(tmp_path / "r")
    assert len(run.steps()) == 2
    assert run.layers().query("step == 1")["trust_ratio"].tolist() == pytest.approx(
        inner.last_step.trust_ratio.tolist(), rel=1e-6
    )
    assert [group["optimizer"] for group in run.manifest.groups] == ["LARS", "SGD"]
    assert applied_rates(model, wrapper).rates.keys() == applied_rates(model, inner).rates.keys()


def test_a_phase_of_an_unknown_optimizer_is_told(tmp_path: Path) -> None:
    model = net()
    with (
        pytest.warns(UserWarning, match="what NAdam does to a rate isn't known"),
        tvlars_probe.record(model, OPTIMIZERS["sgd"](model.parameters()), tmp_path / "r") as rec,
    ):
        rec.begin_phase("second", model, torch.optim.NAdam(model.parameters()))
    (note,) = tvlars_probe.open_run(tmp_path / "r").manifest.notes
    assert note.startswith("what NAdam does")


def test_the_home_folder_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, "~/r") as rec:
        loop(model, optimizer, range(2), rec)
    assert (tmp_path / "r" / "run.json").is_file()
    assert len(tvlars_probe.open_run("~/r").steps()) == len(tvlars_probe.open_runs("~/r*").steps()) == 2


def forks(_: int, __: int, folder: str) -> int:
    """Record, train on in a forked child as well; how many of the recorder's calls the child was refused."""
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, f"{folder}/r") as rec:
        loop(model, optimizer, range(3), rec)
        child = os.fork()
        if not child:
            refused = 0
            try:
                loop(model, optimizer, range(3, 6))
                for call in (rec.flush, rec.state_dict, lambda: rec.log(loss=1.0), lambda: rec.log_epoch(epoch=0)):
                    try:
                        call()
                    except UserError:
                        refused += 1
            finally:  # whatever comes, the child must not go on as its parent
                os._exit(refused)
        refused = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        loop(model, optimizer, range(3, 5), rec)
    return refused


def test_a_forked_child_that_trains_on_adds_no_row(tmp_path: Path) -> None:
    """In a process of its own: once a backward pass has been inside another, torch refuses them in forked children."""
    (tmp_path / "results").mkdir()
    assert on_ranks(forks, 1, tmp_path / "results", str(tmp_path)) == [4]
    assert tvlars_probe.open_run(tmp_path / "r").steps()["step"].tolist() == list(range(5))
    assert not check_run(tmp_path / "r").faults


def test_a_loop_may_change_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, "r") as rec:
        loop(model, optimizer, range(2), rec)
        os.chdir("elsewhere")
        rec.flush()
        loop(model, optimizer, range(2, 4), rec)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 4


def test_before_and_after_its_block_a_recorder_refuses(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    recorder = tvlars_probe.record(model, optimizer, tmp_path / "r")
    calls = (recorder.flush, recorder.state_dict, lambda: recorder.log(loss=1.0), lambda: recorder.log_epoch(epoch=0))
    for call in calls:
        with pytest.raises(UserError, match="isn't recording"):
            call()
    with recorder:
        loop(model, optimizer, range(2), recorder)
    for call in calls:
        with pytest.raises(UserError, match="isn't recording"):
            call()
    assert tvlars_probe.open_run(tmp_path / "r").epochs().empty


@pytest.mark.parametrize("place", ["note_parameters", "environment", "note_unknown"])
def test_whatever_raises_on_entering_leaves_the_place_free_and_no_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("mine")

    model = net()
    optimizers = [OPTIMIZERS["sgd"](model[:2].parameters()), OPTIMIZERS["sgd"](model[2:].parameters())]
    homes = {"environment": "traces.journal"}
    with monkeypatch.context() as patches:
        patches.setattr(f"tvlars_probe.{homes.get(place, 'probes.recording')}.{place}", fail)
        with (
            pytest.raises(ZeroDivisionError, match="mine"),
            tvlars_probe.record(model, optimizers, tmp_path / "run"),
        ):
            raise AssertionError("not reached")
    assert not any(one._optimizer_step_pre_hooks or one._optimizer_step_post_hooks for one in optimizers)
    assert [*tmp_path.iterdir()] == []
    with tvlars_probe.record(model, optimizers, tmp_path / "run"):
        pass


@dataclass(frozen=True)
class OfTwo(Ranks):
    """Rank 0 of two, of which the other brings what is given."""

    other: tuple[int, int, int] = (0, 0, 0)

    def agree_within(self, wishes: Sequence[int], timeout: timedelta) -> list[int]:
        return [*map(max, wishes, self.other)]

    def from_rank(self, rank: int, thing: Any) -> Any:
        return thing if rank == self.rank else (True, "a link")


def test_ranks_come_to_the_end_of_a_block_together_or_raise_the_first_failure() -> None:
    def meeting(*other: int) -> Agreement:
        return Agreement(OfTwo(world_size=2, other=other))  # type: ignore[arg-type]

    with meeting(0, 5, -5).together() as mine:
        mine.fingerprint = 5
    with pytest.raises(UserError, match="unlike parameters"), meeting(0, 6, -6).together() as mine:
        mine.fingerprint = 5
    with pytest.raises(RunDirectoryError, match=r"^rank 1 can't record: a link$"), meeting(1, 0, 0).together():
        pass
    with pytest.raises(ZeroDivisionError), meeting(0, 0, 0).together():
        raise ZeroDivisionError
