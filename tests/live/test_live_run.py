"""What a view shows of a run, in every state that a run can be in."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.recording import BEGAN, begin, finding, layers, resume, steps
from tvlars_probe.live import live_run
from tvlars_probe.live.live_run import LiveRun
from tvlars_probe.traces.following import Follower
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.parts import list_parts

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.traces.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    made = begin(tmp_path / "r", total_steps=100)
    yield made
    made.release()


@pytest.fixture
def run(journal: Journal) -> LiveRun:
    return LiveRun(journal.path)


def test_a_run_that_has_just_begun(run: LiveRun) -> None:
    state = run.renew()
    assert (state.name, state.run_id, state.status) == ("r", "r.id", "running")
    assert (state.steps_done, state.steps_total, state.phase, state.loss, state.rate) == (0, 100, None, None, None)
    assert state.losses == state.findings == state.sharpness == ()
    assert all(there.step is None for there in state.furthest.values())


def test_progress_losses_and_the_time_left(run: LiveRun, journal: Journal) -> None:
    steps(journal, 0, 20)
    journal.flush(20)
    state = run.renew()
    assert (state.steps_done, state.phase, state.loss, state.lr) == (20, "train", 19.0, 0.1)
    assert state.grad_norm == 2.0  # of step 18: step 19 has none
    assert state.losses == tuple((step, float(step)) for step in range(20))
    assert state.rate == pytest.approx(2)
    assert state.seconds_left == pytest.approx(40)
    assert state.last_time == datetime.fromtimestamp(BEGAN / 1e6, UTC) + timedelta(seconds=9.5)
    steps(journal, 20, 30)
    journal.flush(30)
    assert run.renew().steps_done == 30


def test_nothing_is_made_anew_while_nothing_changes(run: LiveRun, journal: Journal) -> None:
    steps(journal, 0, 3)
    journal.flush(3)
    assert run.renew() is run.renew()


def test_epochs_count_for_the_time_left(tmp_path: Path) -> None:
    journal = begin(tmp_path / "e", total_steps=40, steps_per_epoch=10)
    steps(journal, 0, 20)
    for epoch in range(2):
        journal.append_epoch(
            {"step": 10 * (epoch + 1), "epoch": epoch, "phase": "train", "seconds": 30.0, "test_acc1": 50.0}
        )
    journal.flush(20)
    state = LiveRun(journal.path).renew()
    assert state.epoch == {"step": 20, "epoch": 1, "phase": "train", "seconds": 30.0, "test_acc1": 50.0}
    assert state.rate == pytest.approx(2)
    assert state.seconds_left == pytest.approx(20 * 3)
    journal.release()


def test_a_total_that_is_not_known_or_passed(tmp_path: Path) -> None:
    for name, total, left in (("unknown", None, None), ("passed", 5, 0)):
        journal = begin(tmp_path / name, total_steps=total)
        steps(journal, 0, 20)
        journal.flush(20)
        assert LiveRun(journal.path).renew().seconds_left == left
        journal.release()


def test_tensors_furthest_from_their_own_median(run: LiveRun, journal: Journal) -> None:
    for step in range(9):
        odd = 16.0 if step == 8 else 1.0
        layers(journal, step, ["a", "b"], trust_ratio=[odd, None], grad_norm=[1.0, 1 / odd], update_norm=[odd, 1.0])
    layers(journal, 9, ["a", "b"], trust_ratio=[16.0, None], grad_norm=[1.0, 1 / 16], update_norm=[None, None])
    journal.flush(10)
    state = run.renew()
    told = {
        name: (there.step, [(far.parameter, far.factor) for far in there.tensors])
        for name, there in state.furthest.items()
    }
    assert told == {
        "trust_ratio": (9, [("a", pytest.approx(16))]),
        "grad_norm": (9, [("b", pytest.approx(16))]),
        "relative_update": (8, [("a", pytest.approx(16))]),  # it wasn't recorded later
    }


def test_a_phase_with_other_parameters_begins_anew(run: LiveRun, journal: Journal) -> None:
    steps(journal, 0, 4, phase="pretrain", loss=lambda _: 900.0)
    for step in range(4):
        layers(journal, step, ["encoder", "both"], grad_norm=[1.0, 1.0])
    steps(journal, 4, 7, phase="linear")
    for step in range(4, 7):
        layers(journal, step, ["head", "both"], grad_norm=[step, 64.0])
    journal.flush(7)
    state = run.renew()
    assert state.phase == "linear"
    assert state.losses == ((4, 4.0), (5, 5.0), (6, 6.0))
    assert [far.parameter for far in state.furthest["grad_norm"].tensors] == ["head"]


@pytest.mark.parametrize("looks", [False, True], ids=["one look", "a look at each flush"])
def test_a_resumed_run_forgets_what_was_cut(looks: bool, run: LiveRun, journal: Journal) -> None:
    if looks:
        run.renew()
    steps(journal, 0, 10, phase="pretrain")
    steps(journal, 10, 20, phase="linear")
    for step in range(20):
        layers(journal, step, ["a"], grad_norm=[99.0])
    journal.append_epoch({"step": 8, "epoch": 0, "phase": "pretrain", "val_loss": 1.0})
    journal.append_epoch({"step": 16, "epoch": 1, "phase": "linear", "val_loss": 2.0})
    finding(journal, 3, "early")
    finding(journal, 12, "late")
    journal.flush(20)
    if looks:
        assert run.renew().finding_count == 2
    journal.release()
    again = resume(journal.path, 8)
    if looks:
        state = run.renew()
        assert (state.steps_done, state.phase, state.loss) == (8, "pretrain", 7.0)
        assert state.losses[-1] == (7, 7.0)
        assert state.furthest["grad_norm"].step is None
    steps(again, 8, 12, phase="pretrain", loss=lambda _: 0.5)
    for step in range(8, 12):
        layers(again, step, ["a"], grad_norm=[1.0 if step < 11 else 3.0])
    again.flush(12)
    state = run.renew()
    again.release()
    assert (state.steps_done, state.phase, state.loss) == (12, "pretrain", 0.5)
    assert state.losses == tuple((step, float(step) if step < 8 else 0.5) for step in range(12))
    assert state.epoch["val_loss"] == 1.0
    assert [one.text for one in state.findings] == ["early"]
    far = state.furthest["grad_norm"].tensors[0]
    assert far.value == 3.0
    assert far.median == (1.0 if looks else 99.0)  # rows before the cut count where they were read after it


def test_a_run_without_layers_and_without_losses(run: LiveRun, journal: Journal) -> None:
    steps(journal, 0, 5, loss=lambda _: None)
    journal.flush(5)
    state = run.renew()
    assert (state.steps_done, state.losses, state.loss) == (5, (), None)
    assert state.furthest["trust_ratio"].tensors == ()


def test_the_last_top_eigenvalue_of_each_operator(run: LiveRun, journal: Journal) -> None:
    rows = [
        (0, "eigenvalue", "hessian", 1, 5.0, None), (2, "eigenvalue", "hessian", 1, 6.0, None),
        (2, "eigenvalue", "hessian", 2, 4.0, None), (2, "trace", "hessian", None, 99.0, None),
        (2, "eigenvalue", "effective", 1, 2.1, 2.0),
    ]  # fmt: skip
    names = ("step", "measure", "operator", "rank", "value", "limit")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    also = {"measurement_id": ["m"] * 5, "converged": [True] * 5, "scope_kind": ["all"] * 4 + [None]}
    journal.append("curvature", {**columns, **also})
    journal.flush(3)
    found = {one.operator: (one.step, one.value, one.limit, one.converged) for one in run.renew().sharpness}
    assert found == {"hessian": (2, 6.0, None, True), "effective": (2, 2.1, 2.0, True)}


def test_findings_are_kept_the_newest_last_and_counted(
    run: LiveRun, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_run, "MOST_FINDINGS", 3)
    for step in range(5):
        finding(journal, step)
        journal.flush(step)
        run.renew()
    assert [one.step for one in run.state.findings] == [2, 3, 4]
    assert run.state.finding_count == 5
    journal.release()
    again = resume(journal.path, 1)  # of five findings the first alone stays, and that is no longer held
    again.flush(1)
    state = run.renew()
    assert (state.findings, state.finding_count) == ((), 1)
    again.release()


def test_the_first_step_that_was_not_finite_is_a_finding_of_older_runs_too(run: LiveRun, journal: Journal) -> None:
    journal.manifest.finding = {"step": 3, "loss": "nan", "tensor": "a", "quantity": "grad_norm"}
    finding(journal, 2)
    finding(journal, 5)
    journal.flush(6)
    assert [str(one) for one in run.renew().findings] == [
        "step 2: loss_spike: the loss rose",
        "step 3: non_finite: grad_norm of a was not finite",
        "step 5: loss_spike: the loss rose",
    ]
    finding(journal, 7, "a tensor", rule="non_finite")
    journal.flush(8)
    assert [one.step for one in run.renew().findings] == [2, 5, 7]


@pytest.mark.parametrize("status", ["completed", "diverged", "interrupted", "failed"])
def test_the_end_of_a_run(status: str, run: LiveRun, journal: Journal) -> None:
    assert run.renew().status == "running"
    steps(journal, 0, 4)
    journal.flush(4)
    journal.finish(status, ValueError("no room") if status == "failed" else None)
    state = run.renew()
    assert (state.status, state.steps_done, state.may_go_on) == (status, 4, False)
    assert state.notes == (("ValueError: no room",) if status == "failed" else ())


def test_a_killed_run(run: LiveRun, journal: Journal) -> None:
    assert run.renew().status == "running"
    journal.release()
    assert run.renew().status == "killed"


def test_a_run_that_ends_during_a_look_is_not_taken_for_killed(
    run: LiveRun, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.renew()
    real = Follower.look

    def look_then_end(self: Follower) -> Any:
        gained = real(self)
        if journal.manifest.status == "running":
            steps(journal, 0, 4)
            journal.flush(4)
            journal.finish("completed")
        return gained

    monkeypatch.setattr(Follower, "look", look_then_end)
    state = run.renew()
    assert (state.status, state.steps_done) == ("completed", 4)


def test_a_manifest_that_is_damaged_and_mended(run: LiveRun, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(journal, 0, 4)
    journal.flush(4)
    run.renew()
    path = journal.path / FILE_NAME
    path.write_text("{")
    state = run.renew()
    assert (state.status, state.steps_done, state.may_go_on) == ("damaged", 4, True)
    assert "run.json" in (state.trouble or "")
    monkeypatch.setattr(Manifest, "load", lambda _: pytest.fail("it was read again"))
    assert run.renew() is state
    monkeypatch.undo()
    journal.flush(4)
    state = run.renew()
    assert (state.status, state.trouble) == ("running", None)


def test_a_manifest_that_can_be_read_again(journal: Journal) -> None:
    path = journal.path / FILE_NAME
    whole, about = path.read_bytes(), path.stat()
    path.write_bytes(b"?" * len(whole))
    run = LiveRun(journal.path)
    assert run.renew().status == "damaged"
    path.write_bytes(whole)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # as after a change of rights alone
    assert run.renew().status == "running"


def test_a_damaged_part_is_named_and_the_rest_shown(run: LiveRun, journal: Journal) -> None:
    steps(journal, 0, 4)
    layers(journal, 3, ["a"])
    journal.flush(4)
    part = list_parts(journal.path / "trace" / "layers")[0].path
    part.write_bytes(b"PAR1")
    state = run.renew()
    assert (state.status, state.steps_done) == ("running", 4)
    assert part.name in (state.trouble or "")
    assert run.renew() is state
    part.unlink()
    assert run.renew().trouble is None


def test_a_run_that_vanishes_and_one_that_comes_in_its_place(run: LiveRun, journal: Journal, tmp_path: Path) -> None:
    steps(journal, 0, 40)
    journal.flush(40)
    run.renew()
    shutil.rmtree(journal.path)
    state = run.renew()
    assert (state.status, state.steps_done, state.may_go_on) == ("gone", 40, False)
    assert run.renew() is state
    another = begin(tmp_path / "r")
    steps(another, 0, 3)
    another.flush(3)
    state = run.renew()
    assert (state.status, state.steps_done, len(state.losses), state.steps_total) == ("running", 3, 3, None)
    another.release()


def test_a_run_exchanged_between_two_looks(run: LiveRun, journal: Journal, tmp_path: Path) -> None:
    steps(journal, 0, 40)
    journal.flush(40)
    run.renew()
    shutil.rmtree(journal.path)
    another = begin(tmp_path / "r")
    another.manifest.run_id = another._writer.run_id = "another"
    steps(another, 0, 3)
    another.flush(3)
    state = run.renew()
    assert (state.run_id, state.steps_done, len(state.losses)) == ("another", 3, 3)
    another.release()


def test_no_run_there(tmp_path: Path) -> None:
    state = LiveRun(tmp_path / "none").renew()
    assert (state.status, state.name) == ("gone", "none")


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"r\xff")
    journal = begin(path)
    steps(journal, 0, 3)
    journal.flush(3)
    state = LiveRun(path).renew()
    assert (state.name, state.steps_done) == ("r\\udcff", 3)
    journal.release()
