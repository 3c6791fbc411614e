"""``tvlars-probe export`` and ``train --export`` without any tracker's package."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.exports.fakes import Kept
from tests.exports.test_live import train
from tvlars_probe.runners.checkpoints.checking import check_run
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> type[Kept]:
    """An exporter that keeps what it gets, in the place of W&B's; its class has what all its objects have kept."""

    class Stands(Kept):
        made: list[Kept] = []  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.made.append(self)

    module = ModuleType("tvlars_probe.exports.wandb")
    module.WandbExporter = Stands  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("tvlars_probe.exports.settings.find_spec", lambda _: object())
    return Stands


def test_runs_are_exported_and_what_was_left_out_is_said(wandb: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        train(tmp_path / "runs" / name, ())
    settings = ("--layers", "0.*", "--budget", "5", "--out", "out", "--project", "mine")
    done = cli("export", "runs", "--to", "wandb", *settings)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == len(wandb.made) == 2
    for line, name, kept in zip(lines, "ab", wandb.made, strict=True):
        told = f"runs/{name}: {len(kept.values):,} scalars to wandb; left out: the figures of 4 of 6 tensors"
        assert line.startswith(told)
        (run,) = kept.runs
        assert (run.name, run.project, run.folder.as_posix()) == (name, "mine", f"out/{name}")
        assert (3, "l2_norm/grad/0.weight") in kept.values


def test_a_missing_package_and_a_missing_run_are_one_line(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvlars_probe.exports.settings.find_spec", lambda _: None)
    train(tmp_path / "r", ())
    for words, told in (
        (("export", "r", "--to", "mlflow"), "Error: mlflow isn't installed: pip install 'tvlars-probe[mlflow]'"),
        (("export", "nowhere", "--to", "mlflow"), "Error: there is no run at nowhere"),
        (
            ("export", "r", "--to", "trackio", "--out", "x"),
            "Error: trackio has one folder for all runs: ",
        ),
    ):
        done = cli(*words)
        assert done.code == 2
        assert done.err.startswith(told)
        assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "r" / "exports").exists()


def test_train_exports_and_its_config_id_stays(wandb: Any, tmp_path: Path, cli: Callable[..., Any]) -> None:
    common = ("train", "--epochs", "1", "--limit", "64", "--batch-size", "32", "--threads", "1")
    done = cli(*common, "--export", "wandb", "--export-layers", "0.*", "8.bias", "--run-dir", "with")
    assert done.code == 0, done.err
    assert cli(*common, "--run-dir", "without").code == 0
    ids = {Manifest.load(tmp_path / name).config_id for name in ("with", "without")}
    assert len(ids) == 1
    (kept,) = wandb.made
    assert kept.ended == ["completed"]
    assert {(0, "lr/0.weight"), (2, "metrics/train/acc1"), (1, "loss/train")} <= {*kept.values}


def test_train_refuses_a_tracker_that_is_missing_and_layers_without_one(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvlars_probe.exports.settings.find_spec", lambda _: None)
    done = cli("train", "--epochs", "1", "--limit", "64", "--batch-size", "32", "--export", "wandb", "--run-dir", "r")
    assert done.code == 2
    assert done.err.strip() == "Error: wandb isn't installed: pip install 'tvlars-probe[wandb]'"
    assert not (tmp_path / "r").exists()
    done = cli("train", "--export-layers", "0.*", "--run-dir", "r")
    assert done.code == 2
    assert "name them by --export" in done.err


def test_a_check_passes_over_the_trackers_files(tmp_path: Path) -> None:
    train(tmp_path / "r", ())
    (tmp_path / "r" / "exports" / "wandb").mkdir(parents=True)
    (tmp_path / "r" / "exports" / "wandb" / "latest-run").symlink_to("offline-run")
    assert check_run(tmp_path / "r").faults == []
