"""A recording that is continued."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, loop, net
from tvlars_probe.errors import UserError
from tvlars_probe.runners.checkpoints.checking import check_run

if TYPE_CHECKING:
    from pathlib import Path


def test_recording_continues_from_a_saved_state(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["tvlars"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        state = rec.state_dict()
        loop(model, optimizer, range(3, 5), rec)
    with tvlars_probe.record(model, optimizer, tmp_path / "r", resume=state) as rec:
        assert rec.step == 3
        loop(model, optimizer, range(5, 9), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == list(range(7))
    assert run.steps()["samples"].tolist() == [16 * n for n in range(1, 8)]
    assert [(s["first_step"], s["last_step"]) for s in run.manifest.segments] == [(0, 4), (3, 6)]
    assert len(list((tmp_path / "r" / "aside").rglob("*.parquet"))) == 2


def test_a_recording_of_many_parts_can_be_continued_from_an_early_state(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    states = []
    with tvlars_probe.record(model, optimizer, tmp_path / "run", config={"a": 1}, total_steps=200) as rec:
        for step in range(180):
            loop(model, optimizer, range(step, step + 1), rec)
            states.append(rec.state_dict())
    for step in (170, 40):  # a boundary that parts end at, and one long merged over
        with tvlars_probe.record(model, optimizer, tmp_path / "run", resume=states[step - 1]) as rec:
            assert rec.step == step
        run = tvlars_probe.open_run(tmp_path / "run")
        assert run.steps().step.tolist() == list(range(step))
        assert sorted({*run.layers().step}) == list(range(step))
        assert run.manifest.config == {"a": 1}
        assert run.manifest.total_steps == 200


def test_rows_lost_before_a_saved_state_are_a_gap_that_is_told(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        rec.state_dict()
        loop(model, optimizer, range(3, 6), rec)
        state = rec.state_dict()
    for table in ("steps", "layers"):
        parts = sorted((tmp_path / "r" / "trace" / table).iterdir())
        assert len(parts) == 2
        parts[1].unlink()
    with tvlars_probe.record(model, optimizer, tmp_path / "r", resume=state) as rec:
        loop(model, optimizer, range(6, 8), rec)
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == [0, 1, 2, 6, 7]
    assert {(g.table, g.first_step, g.last_step) for g in run.manifest.gaps} == {
        (table, 3, 5) for table in ("steps", "layers", "epochs")
    }
    found = check_run(tmp_path / "r")
    assert not found.faults
    assert "steps lacks steps 3 to 5: not there when the run was continued" in found.notes


LAUGHS = functools.reduce(lambda inner, _: [inner, inner], range(40), ["ha"])
"""Lists that hold the next one twice."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -5}, "step is -5"),
        ({"step": 2.5}, "step is 2.5"),
        ({"step": 10**30}, "step is 1000"),
        ({"phase": 3}, "phase is 3"),
        ({"rates": [1]}, "rates is"),
        ({"rates": {"0.weight": -1.0}}, "the rate of '0.weight' is -1.0"),
        ({"samples": "q"}, "samples is 'q'"),
        ({"last_epoch": 99}, "its last epoch ended after 99 updates of 3"),
        ({"probes": 3}, "probes is 3"),
        ({"rates": LAUGHS}, "written out it has more than"),
        ({"more": LAUGHS}, "written out it has more than"),
        ({"rates": functools.reduce(lambda inner, _: [inner], range(200), [])}, "it nests more than 100 deep"),
    ],
)
def test_a_state_that_is_none_is_refused_and_nothing_changed(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        state = rec.state_dict()
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"resume= takes what rec.state_dict.. gave: .*{message}"):
        tvlars_probe.record(model, optimizer, tmp_path / "r", resume={**state, **change})
    with pytest.raises(UserError, match="it lacks"):
        tvlars_probe.record(model, optimizer, tmp_path / "r", resume={"step": 3})
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
