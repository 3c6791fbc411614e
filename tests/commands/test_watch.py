"""`watch`: what fits the screen, what a pipe gets, and how it ends."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from rich.cells import cell_len

from tests.conftest import run_cli
from tests.live.recording import begin, finding, layers, resume, steps
from tvlars_probe.commands import watch
from tvlars_probe.commands.watch_lines import list_lines, run_lines, summary
from tvlars_probe.findings.finding import Finding
from tvlars_probe.live.own_medians import Far
from tvlars_probe.live.state import QUANTITIES, Furthest, LiveState, TopEigenvalue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Outcome
    from tvlars_probe.traces.journal import Journal

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)

HOSTILE = "[red]\x1b[31m\x9b2J\u202e\n\tעברית重み" + "x" * 300

FULL = LiveState(
    name="resnet18-lars-32768",
    path="runs/resnet18-lars-32768",
    status="running",
    steps_done=12_345,
    steps_total=58_650,
    phase="train",
    losses=tuple((step, 2.0 / (1 + step / 100)) for step in range(0, 12_345, 45)),
    loss=2.3456,
    rate=12.3,
    seconds_left=3765.0,
    grad_norm=0.8123,
    lr=3.2,
    furthest={
        name: Furthest(step=12_340, tensors=tuple(Far(f"layer{k}.0.conv1.weight", 1e-3, 1.0, 1e3) for k in range(5)))
        for name in QUANTITIES
    },
    sharpness=(
        TopEigenvalue(step=12_300, operator="effective", value=2.31, error=0.1, limit=2.0, converged=True),
        TopEigenvalue(step=12_300, operator="hessian", value=412.0, error=9.0, limit=None, converged=False),
    ),
    findings=tuple(Finding(step, "loss_spike", None, 9.0, 3.0, "the loss rose " * 9) for step in (5, 600, 12_000)),
    finding_count=3,
    epoch={"epoch": 12, "train_loss": 1.25, "train_acc1": 71.5, "test_acc1": 60.25, "seconds": 187.0},
    last_time=NOW - timedelta(seconds=14),
)


def plain(lines: list[Any]) -> list[str]:
    return [line.plain for line in lines]


def test_all_that_is_known_of_a_run_fits_80_columns_and_24_lines() -> None:
    lines = plain(run_lines(FULL, NOW, 80, 24))
    assert len(lines) <= 24
    assert max(map(cell_len, lines)) <= 80
    text = "\n".join(lines)
    for part in (
        "resnet18-lars-32768", "running, phase train", "step 12,345 of 58,650", " 21 %", "12.3 steps/s",
        "1:02 h left", "loss 2.3456 ", "▁", "‖g‖ 0.8123", "lr 3.2", "last row 14 s ago",
        "sharpness  effective 2.31 > limit 2  hessian 412, not converged  (step 12,300)", "epoch 12",
        "test acc 60.25 %", "3:07 min", "trust ratio  layer0.0.conv1.weight", "‖Δw‖/‖w‖ ", "×1,000",
        "3 findings, newest first", "step 12000: loss_spike",
    ):  # fmt: skip
        assert part in text
    assert lines.index(next(line for line in lines if "12000:" in line)) > lines.index("3 findings, newest first")
    assert text.count("conv1.weight") == 12  # four of each: findings come first
    assert plain(run_lines(replace(FULL, findings=(), finding_count=0), NOW, 80, 24))[-1] == "0 findings"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_range_of_the_losses_is_that_of_the_blocks(width: int) -> None:
    losses = tuple((step, 100.0 if step == 700 else 1 + step % 7) for step in range(1000))
    line = next(text for text in plain(run_lines(replace(FULL, losses=losses), NOW, width)) if text.startswith("loss"))
    assert line.endswith("7 to 100")
    assert line.count("█") == 1
    assert line.count("▁") == len(line) - len("loss 2.3456       7 to 100") - 1


@pytest.mark.parametrize("width", [1, 5, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 5, 12, 24, 60])
@pytest.mark.parametrize("hostile", [False, True], ids=["usual names", "hostile names"])
@pytest.mark.parametrize("is_plain", [False, True], ids=["UTF-8", "ASCII"])
def test_it_fits_whatever_it_must_show(width: int, height: int, hostile: bool, is_plain: bool) -> None:
    state = FULL
    if hostile:
        far = Furthest(step=1, tensors=tuple(Far(HOSTILE + str(k), math.inf, 0.0, math.inf) for k in range(5)))
        state = replace(
            FULL, name=HOSTILE, phase=HOSTILE, trouble=HOSTILE, status="failed", notes=(HOSTILE,), loss=math.nan,
            losses=((0, math.nan), (1, 1e300)), furthest=dict.fromkeys(QUANTITIES, far),
            findings=tuple(Finding(k, HOSTILE, HOSTILE, None, None, HOSTILE) for k in range(30)), finding_count=30,
        )  # fmt: skip
    lines = plain(run_lines(state, NOW, width, height, plain=is_plain))
    lines += plain(list_lines([state, FULL], 99, NOW, width, plain=is_plain))
    assert len(lines) <= height + 4
    assert max(map(cell_len, lines)) <= width
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "".join(lines))
    if is_plain:
        "".join(lines).encode("ascii")


def test_a_run_of_which_nothing_is_known() -> None:
    state = LiveState(name="r", path="r", status="running")
    assert plain(run_lines(state, NOW, 40, 24)) == [
        "r                                running", "step 0", "No figures of layers on record", "0 findings",
    ]  # fmt: skip
    assert summary(state) == "r  running  step 0"
    assert plain(list_lines([state], 1, NOW, 80))[1].split() == ["r", "running", "0"]


def test_a_quantity_that_was_recorded_before_the_others_says_when() -> None:
    far = (Far("a", 2.0, 1.0, 2.0), Far("b", 2.0, 1.0, 2.0))
    there = {name: Furthest(step=20, tensors=far) for name in QUANTITIES[:2]}
    lines = plain(run_lines(replace(FULL, furthest=there | {QUANTITIES[2]: Furthest(step=10, tensors=far)}), NOW, 80))
    assert next(line for line in lines if line.startswith("step 10 ")).split()[2] == "b"
    none = plain(run_lines(replace(FULL, furthest=there | {QUANTITIES[2]: Furthest()}), NOW, 80))
    assert "‖Δw‖/‖w‖     not on record" in none


@pytest.mark.parametrize(
    ("status", "left"), [("running", True), ("completed", False), ("killed", False), ("interrupted", False)]
)
def test_only_a_run_that_goes_on_has_time_left(status: str, left: bool) -> None:
    state = replace(FULL, status=status)
    assert ("left" in "\n".join(plain(run_lines(state, NOW, 80, 24)))) is left
    assert ("1:02 h" in plain(list_lines([state], 1, NOW, 120))[1]) is left


def test_a_list_has_a_line_each_and_says_how_many_more_there_are() -> None:
    states = [replace(FULL, name=f"run-{k}") for k in range(3)]
    heading, *rows, more = plain(list_lines(states, 200, NOW, 100))
    assert heading.split() == ["run", "status", "steps", "loss", "steps/s", "left", "last", "finding"]
    assert [row.split()[:5] for row in rows] == [
        [f"run-{k}", "running", "12,345/58,650", "2.346", "12.3"] for k in range(3)
    ]
    assert all(row.rstrip().endswith("loss_spike in step 12,000") for row in rows)
    assert more == "and 197 more runs"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = begin(tmp_path / "runs" / "r", total_steps=100)
    steps(made, 0, 20)
    layers(made, 19, ["a", "b"])
    finding(made, 7)
    made.flush(20)
    yield made
    made.release()


def test_once_prints_a_run_and_a_folder(cli: Callable[..., Outcome], journal: Journal) -> None:
    done = cli("watch", "--once", journal.path)
    assert (done.code, done.err) == (0, "")
    assert "step 20 of 100" in done.out
    assert "step 7: loss_spike: the loss rose" in done.out
    done = cli("watch", "--once", journal.path.parent)
    assert done.out.splitlines()[1].split()[:4] == ["r", "running", "20/100", "19"]


def test_once_for_machines(cli: Callable[..., Outcome], journal: Journal) -> None:
    steps(journal, 20, 21, loss=lambda _: math.nan)
    journal.flush(21)
    state = json.loads(cli("watch", "--once", "--json", journal.path).out, parse_constant=pytest.fail)
    assert (state["status"], state["steps_done"], state["loss"], len(state["losses"])) == ("running", 21, None, 21)
    rows = json.loads(cli("watch", "--once", "--json", journal.path.parent).out)
    assert [(row["name"], row["finding_count"]) for row in rows] == [("r", 1)]


def test_what_it_is_given_must_be_there_and_readable(
    cli: Callable[..., Outcome], journal: Journal, tmp_path: Path
) -> None:
    done = cli("watch", "nowhere")
    assert (done.code, done.out) == (2, "")
    assert "there is no run or folder nowhere" in done.err
    done = cli("watch", "--json", journal.path)
    assert (done.code, done.err) == (2, "Error: --json prints the state once: give --once with it\n")
    (tmp_path / "empty").mkdir()
    assert cli("watch", "--once", "empty").out == "No runs below empty\n"
    (journal.path / "run.json").write_text("{")
    for words in ([], ["--once"], ["--once", "--json"]):
        done = cli("watch", *words, journal.path)
        assert (done.code, done.out) == (2, "")
        assert "run.json" in done.err


@pytest.mark.parametrize("words", [[], ["--once"], ["--once", "--json"]])
def test_a_run_that_has_lost_its_manifest_is_refused_and_not_waited_for(
    cli: Callable[..., Outcome], journal: Journal, words: list[str]
) -> None:
    (journal.path / "run.json").unlink()
    done = cli("watch", *words, journal.path)
    assert (done.code, done.out) == (2, "")
    assert "run.json" in done.err


def test_a_pipe_gets_a_line_for_each_change_and_the_whole_at_the_end(
    cli: Callable[..., Outcome], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter(range(9))

    def train(_: float) -> None:
        turn = next(turns)
        if turn == 1:
            steps(journal, 20, 30)
            finding(journal, 25, "again")
            journal.flush(30)
        elif turn == 3:
            journal.finish("completed")

    monkeypatch.setattr(watch.ByHand, "within", lambda _, seconds: train(seconds))
    done = cli("watch", journal.path)
    assert done.code == 0
    assert done.out.splitlines()[:4] == [
        "step 7: loss_spike: the loss rose",
        "r  running  step 20 of 100  loss 19  2 steps/s  40 s left",
        "step 25: loss_spike: again",
        "r  running  step 30 of 100  loss 29  2 steps/s  35 s left",
    ]
    assert next(turns) == 4
    assert done.out.splitlines()[4].split()[:2] == ["r", "completed,"]


def test_a_run_that_vanishes_ends_it(
    cli: Callable[..., Outcome], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.ByHand, "within", lambda *_: shutil.rmtree(journal.path))
    done = cli("watch", journal.path)
    assert done.code == 2
    assert "has vanished while it was watched" in done.err


def test_ctrl_c_ends_it_in_one_line(
    cli: Callable[..., Outcome], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = watch.ByHand.within

    def interrupt(ended: watch.ByHand, seconds: float) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return wait(ended, seconds)

    monkeypatch.setattr(watch.ByHand, "within", interrupt)
    for path, last in ((journal.path, "r  running  step 20"), (journal.path.parent, f"{journal.path.parent}: 1 run")):
        done = cli("watch", path)
        assert (done.code, done.err) == (130, "")
        assert done.out.splitlines()[-1].startswith(last)
        assert not done.out.endswith("1 runs\n")


def test_a_pipe_is_told_again_of_steps_that_a_resumed_run_comes_to_again(
    cli: Callable[..., Outcome], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter(range(9))

    def train(_: float) -> None:
        turn = next(turns)
        if turn == 0:
            steps(journal, 20, 30)
            journal.flush(30)
        elif turn in (1, 2):
            held[-1].release()
            again = resume(journal.path, 10 * turn)
            steps(again, 10 * turn, 10 * turn + 10)
            again.flush(10 * turn + 10)
            held.append(again)
        else:
            held[-1].finish("completed")

    held = [journal]
    monkeypatch.setattr(watch.ByHand, "within", lambda _, seconds: train(seconds))
    done = cli("watch", journal.path)
    assert done.code == 0
    told = [line.split()[3] for line in done.out.splitlines() if line.startswith("r  running")]
    assert told == ["20", "30", "20", "30"]


def in_terminal(*words: str, until: bytes, then: int | None, **environment: str) -> tuple[int, bytes]:
    """Run `watch` in a terminal of 80 columns and 24 lines; once ``until`` is shown, send the signal ``then``."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tvlars_probe", "watch", *words],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**known, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 1 << 16)
        except OSError:  # the other side has gone
            break
        if then is not None and until in shown:
            process.send_signal(then)
            then = None
    try:
        code = process.wait(60)
    finally:
        process.kill()  # one that hangs would show in other tests, too
        process.wait()
        os.close(ours)
    return code, shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_terminal_is_left_as_it_was(journal: Journal, number: int, code: int) -> None:
    ended, shown = in_terminal(str(journal.path), until=b"1 finding", then=number)
    assert ended == code
    assert shown.count(b"\x1b[?1049h") == shown.count(b"\x1b[?1049l") == 1  # the other screen
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1  # the cursor
    assert b"Traceback" not in shown


def test_a_run_that_has_ended_stays_on_screen(journal: Journal) -> None:
    journal.finish("completed")
    code, shown = in_terminal(str(journal.path), until=b"", then=None)
    assert code == 0
    frame = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown.split(b"\x1b[H")[-1].split(b"\x1b[?")[0]).decode()
    lines = frame.split("\r\n")
    assert len(lines) == 24
    assert {cell_len(line) for line in lines} == {80}
    last = shown.split(b"\x1b[?1049l")[1].decode()
    assert "completed" in last
    assert "step 7: loss_spike: the loss rose" in last


def test_without_colour_and_on_a_terminal_that_can_only_print(journal: Journal) -> None:
    journal.finish("completed")
    _, shown = in_terminal(str(journal.path), until=b"", then=None, NO_COLOR="1")
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]", shown)
    _, shown = in_terminal(str(journal.path), until=b"", then=None, TERM="dumb")
    assert b"\x1b" not in shown


def test_an_output_that_is_not_utf8(journal: Journal, tmp_path: Path) -> None:
    done = run_cli("watch", "--once", journal.path, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert "|g| 2" in done.stdout
    assert "\\u" not in done.stdout


def test_figures_that_are_none_are_told_in_words() -> None:
    state = LiveState(
        path="r", name="r", status="diverged", loss=math.nan, losses=((0, 1.0), (1, math.nan)), grad_norm=math.inf,
        furthest={quantity: Furthest() for quantity in QUANTITIES},
    )  # fmt: skip
    assert "loss not finite" in summary(state)
    for width in (40, 80):
        text = "\n".join(line.plain for line in run_lines(state, datetime.now(UTC), width))
        assert "‖g‖ not finite" in text
        assert "loss not finite " in text
        assert "nan" not in text
    assert " not finite " in list_lines([state], 1, datetime.now(UTC), 80)[1].plain
