"""What `record` does with its arguments, and the folder that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, loop, net
from tests.ranked import on_ranks
from tvlars_probe.errors import RunDirectoryError, UserError


def recorded(path: Any, **settings: Any) -> Path:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, path, **settings) as rec:
        loop(model, optimizer, range(2), rec)
    return Path(rec.path)


def test_a_cell_can_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run-3").symlink_to("nowhere")
    names = [recorded("run", exists="new").name for _ in range(3)]
    assert names == ["run", "run-2", "run-4"]
    runs = [tvlars_probe.open_run(name) for name in names]
    assert [run.manifest.run_id.rpartition(".")[0] for run in runs] == names
    assert [len(run.steps()) for run in runs] == [2] * 3
    with pytest.raises(RunDirectoryError, match="run already holds a run"):
        recorded("run")


def test_the_present_folder_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert recorded(".", exists="new").resolve() == here
    assert recorded(".", exists="new") == tmp_path / "here-2"


def test_what_exists_can_mean_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown exists='skip' \(known: error, new\)"):
        recorded(tmp_path / "r", exists="skip")
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(2), rec)
        state = rec.state_dict()
    with pytest.raises(UserError, match="give one of them"):
        tvlars_probe.record(model, optimizer, tmp_path / "r", resume=state, exists="new")


def taken(rank: int, _: int, folder: str) -> str:
    # Only rank 0 sees what is there: the others' folder may be another machine's.
    path = Path(folder, "run") if rank == 0 else Path(folder, f"elsewhere-{rank}", "run")
    return str(recorded(path, exists="new"))


def test_ranks_take_the_folder_that_the_first_has_found(tmp_path: Path) -> None:
    recorded(tmp_path / "run")
    assert on_ranks(taken, 2, tmp_path, str(tmp_path)) == [str(tmp_path / "run-2")] * 2
