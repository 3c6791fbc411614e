"""Run directories from a stranger: read by every command, they run nothing, lead nowhere and reach no network."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT = "<script>alert(1)</script>"
TRAVERSAL = "../../../../outside"


class Payload:
    """Unpickled it leaves a file behind."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("pwned"),)


@pytest.fixture
def run(tmp_path: Path, trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run that any attempt to open a socket fails on."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a network connection was opened")

    shutil.copytree(trained("tvlars", sharpness=True), tmp_path / "place" / "r")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "place" / "r"


def every_command(run: Path) -> list[list[object]]:
    return [
        ["show", run], ["runs", run.parent], ["check", run], ["warmup", run], ["minimizer", run], ["compare", run],
        ["replay", run], ["chart", "trust-ratio", run, "-o", "chart.html"], ["report", run, "-o", "report.html"],
        ["sharpness", run, "--samples", 8, "--tol", 0.5, "--devices", "cpu", "--threads", 1],
        ["train", "--resume", run],
    ]  # fmt: skip


# The check finds tensors that the manifest doesn't know; the others meet a setting or a data set that there is none of.
REFUSED = {"check": 1, "replay": 2, "sharpness": 2, "train": 2}


def replace_strings(value: Any, text: str) -> Any:
    """Every string of a manifest by another, but for those that a run can't be read without."""
    if isinstance(value, dict):
        kept = ("run_id", "status", "phase", "kind")
        return {key: item if key in kept else replace_strings(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_strings(item, text) for item in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("text", [SCRIPT, TRAVERSAL], ids=["script", "up"])
def test_names_in_a_manifest_lead_nowhere(run: Path, cli: Callable[..., Any], tmp_path: Path, text: str) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(replace_strings(manifest, text)))
    before = set(tmp_path.rglob("*"))
    for words in every_command(run):
        outcome = cli(*words)
        assert outcome.code == REFUSED.get(str(words[0]), 0), words
        assert (text in outcome.err) == (outcome.code == 2), "who refuses says what"
        assert "Traceback" not in outcome.err
    made = set(tmp_path.rglob("*")) - before
    assert {path.name for path in made if not path.is_relative_to(run)} == {"chart.html", "report.html"}
    assert not (tmp_path.parent / "outside").exists()


def test_names_are_escaped_in_the_report(run: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    """Names of layers, of data, of the model, and the run's own."""
    path = run / "run.json"
    manifest = json.loads(path.read_text())
    manifest["data"]["name"] = manifest["model"]["name"] = SCRIPT
    manifest["command"] = ["tvlars-probe", SCRIPT]
    manifest["notes"] = [SCRIPT]
    for entry in manifest["parameters"]["train"]:
        entry["layer"] = SCRIPT
    path.write_text(json.dumps(manifest))
    hostile = run.rename(run.with_name("<script>alert(2)<"))
    assert cli("report", hostile, "-o", "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "alert(2)" in page  # it is there, as text


@pytest.mark.parametrize("format", ["pickle", "torch"])
def test_a_pickle_in_a_run_directory_is_never_loaded(
    run: Path,
    cli: Callable[..., Any],
    tmp_path: Path,
    format: str,  # noqa: A002
) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    for path in checkpoints.list_checkpoints(run).values():
        state = {**checkpoints.load(path), "extra": Payload()}
        if format == "torch":
            torch.save(state, path)
        else:
            path.write_bytes(pickle.dumps({"format": 1, "step": 1, "extra": Payload()}))
    for words in every_command(run):
        if words[0] in ("sharpness", "train", "check"):
            outcome = cli(*words)
            assert outcome.code in (1, 2)
            assert ("never loaded" if format == "torch" else "is damaged") in outcome.err + outcome.out
    assert not list(tmp_path.rglob("pwned"))


def test_a_table_that_is_a_link_is_not_followed_when_rows_are_moved(run: Path, cli: Callable[..., Any]) -> None:
    outside = run.parent / "outside"
    (run / "trace" / "steps").rename(outside)
    (run / "trace" / "steps").symlink_to(outside, target_is_directory=True)
    before = sorted(outside.iterdir())
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    outcome = cli("train", "--resume", run)
    assert outcome.code == 2
    assert "is a link" in outcome.err
    assert sorted(outside.iterdir()) == before


def test_the_package_opens_no_connection_but_between_ranks_and_for_downloads() -> None:
    """Who imports what speaks over a network."""
    package = Path(__file__).parent.parent / "tvlars_probe"
    speaking = ("import socket", "import urllib", "import requests", "import http", "from urllib", "from http")
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in speaking)
    }
    # A free port; the host's name; the board, which listens on 127.0.0.1.
    assert found <= {"runners/launching/places.py", "traces/environment.py", "board/serving.py"}
