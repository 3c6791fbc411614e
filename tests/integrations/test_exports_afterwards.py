"""``tvlars-probe export`` with the real trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import tvlars_probe
from tests.exports.test_live import train
from tests.integrations.test_exports_live import TRACKERS, expected, quiet_places, same  # noqa: F401 (a fixture)
from tests.integrations.tracker_readers import READERS
from tests.live.recording import begin, steps
from tests.test_docs import ROOT, blocks, run_line
from tvlars_probe.exports.names import LAYERS, STEPS
from tvlars_probe.runners.checkpoints.checking import check_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = ROOT / "docs" / "guides" / "trackers.md"


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_finished_run_is_exported_and_never_overwritten(
    tracker: str, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    _, rec = train(tmp_path / "r", ())
    out = () if tracker == "trackio" else ("--out", tmp_path / "out" / tracker)
    done = cli("export", tmp_path / "r", "--to", tracker, "--layers", "0.*", *out)
    assert done.code == 0, done.err
    assert f"scalars to {tracker}" in done.out
    found = READERS[tracker](tmp_path / "out", f"{rec.manifest.run_id}-export")
    run = tvlars_probe.open_run(rec.path)
    for key, value in expected(run).items():
        assert same(tracker, found.scalars[key], value), key
    for row in run.layers(parameters=["0.weight"]).itertuples():
        assert same(tracker, found.scalars[row.step, "dot/param_grad/0.weight"], row.weight_grad_dot)
    again = cli("export", tmp_path / "r", "--to", tracker, *out)
    assert again.code == 2
    assert "already" in again.err
    assert len(again.err.splitlines()) == 1


@pytest.mark.parametrize("tracker", TRACKERS)
def test_several_runs_and_a_check_of_them(tracker: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    recs = [train(tmp_path / "runs" / name, ())[1] for name in ("a", "b")]
    assert cli("export", tmp_path / "runs", "--to", tracker).code == 0
    for rec in recs:
        assert check_run(rec.path).faults == []
        if tracker in ("tensorboard", "wandb"):
            assert [*(rec.path / "exports" / f"{tracker}-export").iterdir()]


def test_the_pages_blocks_run(tmp_path: Path, cli: Callable[..., Any]) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    for kind, text in blocks(PAGE):
        if kind == "python":
            exec(compile(text, PAGE.name, "exec"), names)
        else:
            assert kind == "console"
            for line in text.splitlines():
                run_line(line, cli, tmp_path)
    assert len(READERS["tensorboard"](tmp_path / "runs/mine/exports", "").scalars) > 100


def test_every_name_that_is_sent_stands_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in STEPS.values():
        assert f"`{name}`" in page
    for column, name in LAYERS.items():
        assert f"`{name}/LAYER`" in page or "error" in column


def test_trackio_has_one_folder(tmp_path: Path, cli: Callable[..., Any]) -> None:
    train(tmp_path / "r", ())
    done = cli("export", tmp_path / "r", "--to", "trackio", "--out", tmp_path / "out")
    assert done.code == 2
    assert "TRACKIO_DIR" in done.err


def test_a_run_that_still_trains_has_not_failed_in_wandb(tmp_path: Path, cli: Callable[..., Any]) -> None:
    journal = begin(tmp_path / "r")
    steps(journal, 0, 3)
    journal.flush(3)
    assert cli("export", journal.path, "--to", "wandb", "--out", tmp_path / "out" / "wandb").code == 0
    assert READERS["wandb"](tmp_path / "out", f"{journal.manifest.run_id}-export").status == "0"
    journal.release()
