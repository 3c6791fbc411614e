from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints import restoring


def content(step: int) -> dict[str, object]:
    """A state after ``step`` updates, at an epoch's end."""
    return {
        "phase": "train",
        "epochs": 1,
        "model": {"x": torch.arange(3)},
        "optimizer": {"state": {}, "param_groups": [{"betas": (1, 2.5, None, "s")}]},
        "scheduler": {},
        "recorder": {"step": step, "samples": 0, "phase": "train", "rates": {}},
        "rng": [{"cpu": torch.get_rng_state()}],
        "best": None,
    }


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 7, content(7))
    state = checkpoints.load(path)
    assert torch.equal(state["model"]["x"], torch.arange(3))
    assert state["optimizer"]["param_groups"] == [{"betas": (1, 2.5, None, "s")}]
    assert [p.name for p in path.parent.iterdir()] == ["step-7.pt"]


def test_a_state_under_another_steps_name_is_refused(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 7, content(7)).rename(tmp_path / "checkpoints" / "step-8.pt")
    with pytest.raises(RunDirectoryError, match="the state after 7 updates, not after 8"):
        checkpoints.load(path)


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        checkpoints.save(tmp_path, step, {})
    (tmp_path / "checkpoints" / ".step-300.pt.1.tmp").write_bytes(b"")
    assert [*checkpoints.list_checkpoints(tmp_path)] == [9, 20, 100]
    checkpoints.keep_only(tmp_path, [20])
    assert [*checkpoints.list_checkpoints(tmp_path)] == [20]


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("pwned"),)  # type: ignore[return-value]


@pytest.mark.parametrize("content", ["pickle", "torch pickle", "truncated", "empty", "text", "other"])
def test_damaged_and_malicious_checkpoints_are_refused_by_name(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = checkpoints.save(tmp_path, 1, {"x": torch.ones(100)})
    if content == "pickle":
        path.write_bytes(pickle.dumps({"format": 1, "step": 1, "x": Payload()}))
    elif content == "torch pickle":
        torch.save({"format": 1, "step": 1, "x": Payload()}, path)
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif content == "other":
        torch.save({"epoch": 3}, path)
    else:
        path.write_bytes(b"" if content == "empty" else b"hello there")
    with pytest.raises(RunDirectoryError, match=path.name):
        checkpoints.load(path)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"there is no checkpoint .*step-1\.pt"):
        checkpoints.load(tmp_path / "step-1.pt")


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    state = {"model": nn.Linear(3, 4).state_dict()}
    with pytest.raises(RunDirectoryError, match="holds another model's weights"):
        restoring.restore_model(nn.Linear(3, 5), state, tmp_path / "step-1.pt")


@pytest.mark.parametrize("place", ["manifest", "best", "rng", "config", "scheduler"])
def test_a_checkpoint_of_shared_lists_is_refused(tmp_path: Path, place: str) -> None:
    laughs: object = ["ha", "ha"]
    for _ in range(30):
        laughs = [laughs, laughs]
    path = checkpoints.save(tmp_path, 7, content(7) | {place: laughs})
    with pytest.raises(RunDirectoryError, match=r"is damaged \(written out it has more than .*--repair"):
        checkpoints.load(path)


def test_a_fifo_is_no_checkpoint(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 7, content(7))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RunDirectoryError, match="it is no plain file"):
        checkpoints.load(path)


def test_a_checkpoint_in_a_folder_that_is_no_utf8_is_loaded(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"caf\xe9")
    run.mkdir()
    assert checkpoints.load(checkpoints.save(run, 7, content(7)))["step"] == 7
