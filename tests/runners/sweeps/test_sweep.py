from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tvlars_probe
from tests.commands.test_command_lines import LINES, parse, words
from tests.runners.test_ranks import wait_for
from tvlars_probe.commands.sweep import build_trials
from tvlars_probe.errors import UserError
from tvlars_probe.runners.sweeps.grid import SHIPPED, Grid, read_grid
from tvlars_probe.runners.sweeps.launch_plan import LaunchPlan
from tvlars_probe.runners.sweeps.trials import Outcome
from tvlars_probe.traces.run_directory import find_runs

QUICK = ("--limit", 64, "--bs", 32, "--epochs", 2, "--dv", "cpu", "--threads", 1, "--train-eval-samples", 0)
CUBE = ("--opt", "lars", "tvlars", "--lr", "1", "2", "--seeds", "0", "1")


def test_the_shipped_grids_are_the_36_command_lines() -> None:
    assert sorted(p.stem for p in SHIPPED.glob("*.toml")) == ["barlow-twins-512", "classification-512"]

    def numbers(config: Any) -> str:
        return config.config_id(fingerprint="x", world_size=1)  # type: ignore[no-any-return]

    swept = [t.config for n in ("classification-512", "barlow-twins-512") for t in build_trials(read_grid(n), Path())]
    assert len(swept) == 36
    assert [numbers(c) for c in swept] == [numbers(parse(words(line))) for line in LINES]


def test_a_grid_is_the_product_of_its_axes() -> None:
    grid = Grid(settings={"bs": ("32",)}, axes={"lr": ("1", "2"), "seed": ("0", "1", "2")})
    points = [*grid.points()]
    assert len(points) == 6
    assert points[1] == {"lr": "1", "seed": "1"}
    assert grid.command_line(points[1]) == ["--bs", "32", "--lr", "1", "--seed", "1"]


def test_points_that_differ_in_nothing_that_counts_are_trained_once() -> None:
    trials = build_trials(Grid(axes={"opt": ("lars", "tvlars"), "lmbda": ("0.1", "0.2")}), Path("x"))
    assert [t.config.optimizer.name for t in trials] == ["lars", "tvlars", "tvlars"]


def test_a_peak_is_swept_over_batch_sizes(tmp_path: Path) -> None:
    """As an axis and as a setting of a file; a rate before the schedule beside it is refused."""
    (tmp_path / "g.toml").write_text('[settings]\nsd = "lars-warm"\n[grid]\npeak-lr = [4, 16.0]\nbs = [64, 512]\n')
    trials = build_trials(read_grid(str(tmp_path / "g.toml")), Path())
    assert [(t.config.schedule.peak_lr, t.config.optimizer.lr) for t in trials] == [
        (4.0, 16.0), (4.0, 2.0), (16.0, 64.0), (16.0, 8.0),
    ]  # fmt: skip
    assert len({t.path for t in trials}) == 4
    with pytest.raises(UserError, match="--lr 1 and --peak-lr 4 are two words for one rate"):
        build_trials(Grid(settings={"lr": ("1",)}, axes={"peak-lr": ("4",)}), Path())


def test_options_replace_the_files(cli: Any) -> None:
    Path("mine.toml").write_text("[settings]\nbs = 32\nadam = true\nnesterov = false\n[grid]\nlr = [1.0, 2]\n")
    done = cli("sweep", "mine.toml", "--lr", "5", "--seeds", "0", "1", "--sync-bn", "--dv", "0", "1", "--dry-run")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 2
    words_given = lines[1].split()
    assert words_given[:2] == ["tvlars-probe", "train"]
    for part in ("--bs 32", "--adam", "--lr 5", "--sync-bn", "--devices 0 1", "--seed 1", "--run-dir runs/mine/"):
        assert part in lines[1]
    assert "nesterov" not in lines[1]


def test_a_grid_of_eight_is_trained_once(cli: Any) -> None:
    done = cli("sweep", *CUBE, *QUICK, "--out", "s")
    assert done.code == 0, done.err
    assert "8/8  optimizer=tvlars lr=2 seed=1  completed" in done.out
    runs = [*find_runs(Path("s"))]
    assert len(runs) == 8
    stamps = [(p / "run.json").stat().st_mtime_ns for p in runs]
    again = cli("sweep", *CUBE, *QUICK, "--out", "s")
    assert again.out.count("completed") == 16
    assert [(p / "run.json").stat().st_mtime_ns for p in runs] == stamps
    manifest = tvlars_probe.open_run(runs[0]).manifest
    assert manifest.command is not None
    assert manifest.command[0] == "train"


def test_a_failed_run_is_listed_and_tried_again(cli: Any) -> None:
    """lr 1 is made to fail by a folder of something else in its place."""
    arguments = ("sweep", "--lr", 1, 2, *QUICK, "--out", "s")
    first = cli(*arguments, "--dry-run").out.split()
    place = Path(first[first.index("--run-dir") + 1])
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("x")
    done = cli(*arguments)
    assert done.code == 1
    assert "1/2  lr=1  failed" in done.out
    assert "already holds something that is not a run" in done.out
    assert "2/2  lr=2  completed" in done.out
    assert done.err == "Error: 1 of 2 runs failed; the same command tries them again\n"
    (place / "notes.txt").unlink()
    again = cli(*arguments)
    assert again.code == 0
    assert again.out.count("completed") == 4


def test_a_run_that_is_not_finished_is_no_success(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvlars_probe.commands.sweep.sweep", lambda *_: [Outcome(status="interrupted")])
    done = cli("sweep", "--lr", 1, *QUICK, "--out", "s")
    assert done.code == 1
    assert done.err == "Error: 1 of 1 run not finished; the same command continues them\n"


def test_a_sweep_is_no_rank_of_torchrun(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    done = cli("sweep", "--lr", 1, 2)
    assert done.code == 2
    assert "call it without torchrun" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "there is nothing to sweep"),
        (["nothing"], "there is no grid nothing: give a TOML file, or one of barlow-twins-512, classification-512"),
        (["bad.toml"], "bad.toml is not a TOML file"),
        (["odd.toml"], "odd.toml has lr: a grid has the tables"),
        (["both.toml"], "lr stands in both"),
        (["strange.toml"], "tvlars-probe train has no option --momentun"),
        (["--lr", "1", "x"], "'x' is not a valid float"),
        (["--opt", "lion", "lars"], "'lion' is not one of"),
        (["--lr", "1", "-2"], "--lr -2 is outside its range"),
        (["--lr", "1", "2", "--jobs", "0"], "--jobs 0 is too few"),
        (["--lr", "1", "2", "--launcher", "slurm"], "--launcher slurm can't be used on this machine"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_bad_grids_are_one_line_and_leave_nothing(cli: Any, args: list[str], message: str) -> None:
    Path("bad.toml").write_text("lr = [")
    Path("odd.toml").write_text("lr = [1]")
    Path("both.toml").write_text("[settings]\nlr = 1\n[grid]\nlr = [1]\n")
    Path("strange.toml").write_text("[settings]\nmomentun = 1\n")
    before = sorted(Path().rglob("*"))
    done = cli("sweep", *args)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert message in done.err
    assert sorted(Path().rglob("*")) == before


def test_without_submitit_the_error_names_the_extra(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = cli("sweep", "--lr", 1, 2, "--launcher", "local")
    assert done.code == 2
    assert "pip install 'tvlars-probe[sweep]', or use --launcher inline" in done.err


def test_negative_settings_are_refused() -> None:
    with pytest.raises(UserError, match="--time 0 is too few"):
        LaunchPlan(minutes=0)


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_ends_with_each_run_trained_once(tmp_path: Path) -> None:
    longer = [30 if word == 2 else word for word in QUICK]
    words_given = [*CUBE[:-3], *longer, "--out", "s", "--launcher", "local", "--jobs", 2]
    command = [sys.executable, "-m", "tvlars_probe", "sweep", *[str(w) for w in words_given]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    def completed() -> int:
        runs = [tvlars_probe.open_run(p) for p in find_runs(tmp_path / "s")]
        return sum(r.status == "completed" for r in runs)

    wait_for(lambda: completed() >= 1 or process.poll() is not None, 240)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    runs = [tvlars_probe.open_run(p) for p in find_runs(tmp_path / "s")]
    assert [r.status for r in runs] == ["completed"] * 4
    for run in runs:
        assert run.steps()["step"].tolist() == list(range(60))
        starts = [segment["first_step"] for segment in run.manifest.segments]
        # A run that was cut off goes on from a checkpoint; one that ended is not begun again.
        assert starts == sorted(starts)
        assert starts.count(0) <= 1 + int(run.manifest.segments[0]["last_step"] != 59)
        assert sum(segment["last_step"] == 59 for segment in run.manifest.segments) == 1
