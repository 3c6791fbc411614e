"""What `record` does with its arguments, and the folder that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.parallel import DistributedDataParallel

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, loop, net
from tests.ranked import on_ranks
from tvlars_probe.errors import RunDirectoryError, UserError
from tvlars_probe.traces import run_directory


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


def unreadable(rank: int, _: int, folder: str) -> str:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    if rank == 0:
        run_directory.is_vacant = denied
    (Path(folder) / "run").mkdir(exist_ok=True)
    try:
        recorded(Path(folder) / "run", exists="new")
    except (PermissionError, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return "recorded"


def test_a_folder_that_the_first_rank_cannot_read_is_refused_on_all(tmp_path: Path) -> None:
    first, second = on_ranks(unreadable, 2, tmp_path, str(tmp_path))
    assert first.startswith("PermissionError")
    assert second.startswith("UserError: rank 0 can't record: ")


def joining(rank: int, _: int, folder: str) -> str:
    model = DistributedDataParallel(net())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    try:
        with tvlars_probe.record(model, optimizer, Path(folder) / "run") as rec, model.join():
            loop(model, optimizer, range(2), rec)
    except UserError as error:
        return str(error)
    return "recorded"


def test_uneven_inputs_are_refused_where_ranks_record_together(tmp_path: Path) -> None:
    for told in on_ranks(joining, 2, tmp_path, str(tmp_path)):
        assert told.startswith("under join() of DistributedDataParallel")


def told_a_dtensor(rank: int, world_size: int, folder: str) -> float:
    mesh = init_device_mesh("cpu", (world_size,))
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, Path(folder) / "run") as rec:
        loop(model, optimizer, range(1))
        terms = DTensor.from_local(torch.tensor(float(rank + 1)), mesh, [Partial()])
        rec.log(loss=terms, tokens=DTensor.from_local(torch.tensor(7), mesh, [Replicate()]))
    return 0.0


def test_a_loss_may_be_a_dtensor(tmp_path: Path) -> None:
    """As under tensor parallelism, whose loss is one."""
    on_ranks(told_a_dtensor, 2, tmp_path, str(tmp_path))
    (row,) = tvlars_probe.open_run(tmp_path / "run").steps().itertuples()
    assert (row.loss, row.tokens) == (3.0, 14)
