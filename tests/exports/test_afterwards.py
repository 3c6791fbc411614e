"""The export of a run on disk: the same values, whatever state it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tvlars_probe
from tests.exports.fakes import Kept, Raising
from tests.exports.test_live import train
from tvlars_probe.errors import UserError
from tvlars_probe.exports import afterwards
from tvlars_probe.exports.afterwards import export_trace
from tvlars_probe.traces.journal import Journal
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.parts import list_parts

if TYPE_CHECKING:
    from pathlib import Path


def exported(path: Path, **settings: Any) -> tuple[Kept, list[tuple[int, int]], str | None]:
    kept, told = Kept(), list[tuple[int, int]]()
    export = tvlars_probe.Export(kept, **settings)
    sent, left_out = export_trace(tvlars_probe.open_run(path), export, lambda done, of: told.append((done, of)))
    assert sent == sum(len(point.values) for point in kept.points)
    return kept, told, left_out


def written(path: Path, steps: int, tensors: int, *, finishes: bool = True) -> np.ndarray[Any, Any]:
    """A run whose gradient norms are these: a matrix of steps and tensors."""
    grad = np.random.default_rng(0).lognormal(size=(steps, tensors)).astype(np.float32)
    journal = Journal.create(path, Manifest(run_id=f"{path.name}.id"))
    journal.begin_segment(0)
    for step in range(steps):
        journal.append("steps", {"step": [step], "loss": [1 / (1 + step)]})
        names = [f"layer{k:04d}" for k in range(tensors)]
        journal.append("layers", {"step": [step] * tensors, "parameter": names, "grad_norm": grad[step]})
        if step % 50 == 49:
            journal.flush(step + 1)
    journal.flush(steps)
    if finishes:
        journal.finish("completed")
    else:
        journal.release()
    return grad


def test_afterwards_the_same_is_sent_as_while_it_trained(tmp_path: Path) -> None:
    live = Kept()
    train(tmp_path / "r", [live])
    kept, told, left_out = exported(tmp_path / "r")
    # A window is shorter than a flush was, so that more is sent.
    assert live.values.items() <= kept.values.items()
    assert kept.ended == ["completed"]
    assert left_out is None
    assert told[-1] == (30, 30)
    assert kept.runs[0].run_id == f"{live.runs[0].run_id}-export"
    assert kept.runs[0].folder == tmp_path / "r" / "exports" / "Kept-export"


@pytest.mark.parametrize("finishes", [True, False], ids=["finished", "killed"])
@pytest.mark.parametrize("rows", [1 << 21, 5000], ids=["at once", "window by window"])
def test_any_state_and_any_memory_give_the_same(
    finishes: bool, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(afterwards, "MOST_ROWS", rows)
    grad = written(tmp_path / "r", 300, 40, finishes=finishes)
    kept, told, left_out = exported(tmp_path / "r", layers=["layer0003"])
    assert kept.ended == ["completed" if finishes else "killed"]
    assert told[-1] == (100, 100)
    assert {step for step, name in kept.values if name == "l2_norm/grad/layer0003"} == {*range(300)}
    assert all(kept.values[step, "l2_norm/grad/layer0003"] == grad[step, 3] for step in range(300))
    assert kept.values[299, "quantiles/l2_norm/grad/max"] == grad[299].max()
    assert [point.step for point in kept.points] == sorted(point.step for point in kept.points)
    assert left_out is not None
    assert left_out.startswith("left out: the figures of 19 of 40 tensors (--layers GLOB sends them)")


def test_a_window_stays_in_its_budget(tmp_path: Path) -> None:
    written(tmp_path / "r", 400, 30)
    kept, told, _ = exported(tmp_path / "r", budget=9)
    assert len(kept.values) <= 9 * len(told)
    assert all((step, "loss/train") in kept.values for step in range(3, 400, 4))  # the last of each window


def test_what_is_on_record_from_before_the_first_step_that_is_left_is_sent(tmp_path: Path) -> None:
    grad = written(tmp_path / "r", 100, 2, finishes=False)
    first, _ = list_parts(tmp_path / "r" / "trace" / "steps")
    first.path.unlink()  # steps 0 to 49
    kept, _, _ = exported(tmp_path / "r", layers=["layer0001"])
    assert [kept.values[step, "l2_norm/grad/layer0001"] for step in range(100)] == grad[:, 1].tolist()


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "r", Manifest(run_id="r"))
    journal.begin_segment(0)
    journal.release()
    with pytest.raises(UserError, match="holds no step yet"):
        exported(tmp_path / "r")


def test_a_tracker_that_fails_is_told_in_a_line(tmp_path: Path) -> None:
    train(tmp_path / "r", ())
    with pytest.raises(UserError, match=r"Raising failed: ConnectionError: the tracker is away$"):
        export_trace(tvlars_probe.open_run(tmp_path / "r"), tvlars_probe.Export(Raising()), lambda *_: None)


def test_a_link_that_leads_out_of_the_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "r", ())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "r" / "exports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a link that leads out of the run"):
        exported(tmp_path / "r")
