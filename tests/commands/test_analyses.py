"""The commands that analyse, draw and report: what they print, write and refuse."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tvlars_probe.charts.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Outcome

    Cli = Callable[..., Outcome]

ONE_RUN = {
    "warmup": ("parameter", "length"),
    "minimizer": ("step", "value"),
    "compare": ("optimizer", "mean"),
    "replay": ("parameter", "replayed_ratio"),
    "landscape": ("alpha", "loss"),
}
"""Per command: columns of its main table."""


def words(name: str, run: Path) -> tuple[object, ...]:
    return (name, run, "--stored") if name == "landscape" else (name, run)


@pytest.mark.parametrize("name", ONE_RUN)
def test_an_answer_is_text_json_or_csv_on_the_terminal_or_in_a_file(
    name: str, measured: list[Path], cli: Cli, tmp_path: Path
) -> None:
    asked = words(name, measured[0])
    text, as_json, as_csv = (cli(*asked, *form) for form in ((), ("--json",), ("--csv",)))
    for done in (text, as_json, as_csv):
        assert done.code == 0, done.err
    everything = json.loads(as_json.out)
    verdict = everything["verdict"]
    assert verdict["answer"] in text.out
    assert verdict["question"] in text.out
    rows = list(csv.DictReader(io.StringIO(as_csv.out)))
    assert rows
    assert {*ONE_RUN[name]} <= {*rows[0]}
    assert cli(*asked, "--out", tmp_path / "answer.json").out == f"Written: {tmp_path / 'answer.json'}\n"
    assert json.loads((tmp_path / "answer.json").read_text()) == everything
    assert cli(*asked, "--csv", "-o", tmp_path / "answer.txt").code == 0
    assert (tmp_path / "answer.txt").read_text() == as_csv.out


@pytest.mark.parametrize("name", ["warmup", "minimizer", "compare"])
def test_several_runs_are_given_by_path_folder_or_pattern(name: str, measured: list[Path], cli: Cli) -> None:
    folder = measured[0].parent
    by_path, by_folder, by_glob = (
        cli(name, *given, "--json") for given in (sorted(measured), [folder], [f"{folder}/*"])
    )
    assert by_path.code == by_folder.code == by_glob.code == 0
    assert json.loads(by_path.out) == json.loads(by_folder.out) == json.loads(by_glob.out)
    text = cli(name, folder)
    assert "3 runs" in text.out


def test_runs_of_one_peak_rate_and_seed_are_paired(measured: list[Path], cli: Cli) -> None:
    answer = json.loads(cli("warmup", *measured, "--json").out)
    pairs = {(row["run_without"], row["run_with"]) for row in answer["pairs"]["pairs"]}
    assert pairs == {(measured[0].name, measured[1].name)}  # the third is of another optimizer
    by_lr = json.loads(cli("warmup", *measured, "--pair-by", "lr", "--json").out)
    assert by_lr["pairs"]["pairs"] == []
    assert "can't tell" in cli("minimizer", *measured).out


@pytest.mark.parametrize("name", ["warmup", "minimizer", "compare", "replay"])
def test_a_killed_run_is_analysed_as_far_as_it_came(
    name: str, trained: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    shutil.copytree(trained("lars"), run)
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "status": "running", "final": {}}))
    for table in ("layers", "steps", "epochs"):  # cut off: only the first part of each table is left
        _, *rest = sorted((run / "trace" / table).glob("part-*"))
        for part in rest:
            part.unlink()
    done = cli(name, run, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out).get("facts")
    assert facts is None or facts["status"] == "killed"


@pytest.mark.parametrize(
    ("name", "table", "column"),
    [
        ("warmup", "layers", "direction_norm"),
        ("replay", "layers", "weight_grad_dot"),
        ("minimizer", "curvature", "bn_mode"),
    ],
)
def test_a_column_missing_in_an_old_trace_is_named(
    name: str, table: str, column: str, recorded: list[Path], cli: Cli, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    run = tmp_path / "old"
    shutil.copytree(recorded[0], run)
    parts = sorted((run / "trace" / table).glob("part-*"))
    assert parts
    for part in parts:
        pq.write_table(pq.read_table(part).drop_columns([column]), part)
    done = cli(name, run)
    assert done.code == 2
    assert f"has no column {column} in {table}" in done.err
    assert done.err.count("\n") == 1


def test_lamb_is_replayed_from_lamb_only_and_one_run_at_a_time(measured: list[Path], cli: Cli) -> None:
    done = cli("replay", measured[0], "--optimizer", "lamb")
    assert done.code == 2
    assert "adam_norm" in done.err
    assert "replay takes one run, 3 were given" in cli("replay", *measured).err


def test_a_replay_scales_with_eta(measured: list[Path], cli: Cli) -> None:
    done = cli("replay", measured[0], "--eta", 0.02, "--json")
    table = {row["parameter"]: row for row in json.loads(done.out)["table"]}
    assert table["0.weight"]["rate_quotient"] == pytest.approx(20, rel=1e-4)
    assert "one-step counterfactual" in json.loads(done.out)["verdict"]["reason"]


def test_comparisons_take_a_metric_rows_and_columns(measured: list[Path], cli: Cli) -> None:
    done = cli("compare", *measured, "--metric", "test_loss", "--rows", "optimizer", "--columns", "", "--json")
    answer = json.loads(done.out)
    assert answer["metric"] == "test_loss"
    assert {row["optimizer"] for row in answer["table"]} == {"LARS", "TVLARS"}
    bad = cli("compare", *measured, "--metric", "happiness")
    assert bad.code == 2
    assert "happiness" in bad.err
    assert bad.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("warmup", "nowhere"), "there is no run at nowhere"),
        (("warmup", "RUN", "--json", "--csv"), "two forms of one answer"),
        (("warmup", "RUN", "-o", "no/such/folder.json"), "there is no folder"),
        (("warmup", "RUN", "-o", "."), "is a folder"),
        (("warmup", "RUN", "--phase", "linear"), "unknown phase"),
        (("minimizer", "RUN", "--escaped", -3), "--escaped -3 is outside its range"),
        (("landscape", "RUN", "RUN2", "RUN3"), "landscape takes one run or two, 3 were given"),
        (("landscape", "RUN2", "--stored"), "has no slice on record"),
        (("landscape", "RUN", "RUN2", "--dimensions", 2), "between two runs there is a line"),
        (("landscape", "RUN", "--points", 2), "allowed: 3 to 1000"),
        (("landscape", "RUN", "RUN"), "landscape was given one run twice"),
        (("landscape", "RUN", "RUN2", "--stored"), "has no line to"),
        (("chart", "trust-ratio", "RUN"), "name the file to write by -o"),
        (("chart", "trust-ratio"), "chart takes a kind and a run"),
        (("chart", "pie", "RUN", "-o", "a.png"), "unknown kind of chart 'pie'"),
        (("chart", "loss", "RUN", "-o", "a.gif"), "suffix of a.gif"),
        (("chart", "density", "RUN2", "-o", "a.png"), "tvlars-probe sharpness --density"),
        (("report", "RUN", "-o", "a.pdf"), "a report is an HTML page"),
        (("report", "nowhere"), "there is no run at nowhere"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_writes_nothing(
    args: tuple[Any, ...], message: str, measured: list[Path], cli: Cli, tmp_path: Path
) -> None:
    places = {"RUN": measured[0], "RUN2": measured[1], "RUN3": measured[2]}
    done = cli(*(places.get(word, word) for word in args))
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ("warmup", "RUN", "-o", "RUN/run.json"),
        ("replay", "RUN", "-o", "RUN/trace/steps/answer.csv"),
        ("landscape", "RUN", "--points", 3, "-o", "link/answer.txt"),
        ("chart", "loss", "RUN", "-o", "RUN/loss.json"),
        ("report", "RUN", "-o", "RUN/report.html"),
    ],
    ids=str,
)
def test_nothing_is_written_into_a_run_directory(
    args: tuple[Any, ...], trained: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = shutil.copytree(trained("lars"), tmp_path / "RUN")
    (tmp_path / "link").symlink_to(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = cli(*args)
    assert done.code == 2
    assert "lies in the run directory" in done.err
    assert done.err.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_charts_are_listed_with_what_the_runs_lack(measured: list[Path], cli: Cli) -> None:
    kinds = [line.split()[0] for line in cli("chart", "--list").out.splitlines()]
    assert kinds == list(KINDS)

    def lacking(*runs: Path) -> set[str]:
        return {line.split()[0] for line in cli("chart", "--list", *runs).out.splitlines() if "[" in line}

    several = {"warmup", "gap", "time-to-target"}  # they take several runs
    assert lacking(*measured) == {"time-to-target"}  # which are of one batch size
    assert lacking(measured[0]) == several
    alone = {"density", "blocks", "landscape", "landscape-map", "noise", "noise-layers", "batch-size"}
    assert lacking(measured[1]) == several | alone


@pytest.mark.parametrize("name", ["trust-ratio", "loss"])
def test_a_chart_is_written(name: str, measured: list[Path], cli: Cli, tmp_path: Path) -> None:
    done = cli("chart", name, measured[0], "-o", tmp_path / "chart.svg")
    assert done.out == f"Written: {tmp_path / 'chart.svg'}\n"
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


def test_a_chart_names_the_runs_that_it_leaves_out(measured: list[Path], cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(measured[0], bad)
    shutil.rmtree(bad / "trace" / "epochs")
    done = cli("chart", "accuracy", bad, measured[1], "-o", "a.json")
    assert (done.code, done.out) == (0, "Written: a.json\n")
    assert done.err == f"{bad} is left out: no epoch is finished yet\n"
    done = cli("chart", "comparison", bad, measured[1], "-o", "b.json")
    assert done.err == f"{bad} counts without a value: no epoch is finished yet\n"


def test_a_report_is_written_where_it_is_said_to_be(trained: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    done = cli("report", trained("lars"), "-o", "page.html")
    assert done.out == "Report: page.html\n"
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("kind", ["fifo", "dangling", "loop", "socket"])
def test_what_is_no_plain_file_is_never_replaced(
    kind: str, trained: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    """As root, -o /dev/null would have put a file in its place."""
    path = tmp_path / "answer.csv"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("answer.csv")  # in the working folder, since a socket's path is short
    else:
        path.symlink_to("nowhere" if kind == "dangling" else path.name)
    before = path.lstat().st_ino
    done = cli("compare", trained("lars"), "-o", path)
    assert done.code == 2
    assert "is no plain file, and would be replaced by one" in done.err
    assert path.lstat().st_ino == before


def test_an_answer_goes_through_a_link_and_into_a_file_of_a_long_name(
    trained: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "answer.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("answer.csv")
    assert cli("compare", trained("lars"), "-o", "link.csv").code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "answer.csv").read_text().startswith("optimizer,")
    assert cli("compare", trained("lars"), "-o", f"{'é' * 125}.csv").code == 0
