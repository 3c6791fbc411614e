"""Command lines with options and values, valid and not; runs are called ``run`` and ``other``."""

from __future__ import annotations

import click
from hypothesis import strategies as st

from tvlars_probe.charts.kinds import KINDS
from tvlars_probe.cli import COMMANDS
from tvlars_probe.cli import main as command_line

NUMBERS = ["0", "-1", "1", "2", "3", "7", "x", "", "1e3", "0.5", "-0.1", "nan", "inf", "-inf", "٣", "1_0", " 2"]
WORDS = [
    "",
    "x",
    "none",
    "all",
    "last",
    "../..",
    "a b",
    "é",
    "\N{PILE OF POO}",
    "log",
    "10%",
    "-5%",
    "loss",
    "train",
    "a:b",
]
HUGE = ["99999999999999999999", "1e308", "1e-320"]
UNBOUNDED = {  # what would only take long
    "epochs", "cl_epochs", "points", "density_steps", "density_probes", "max_matvecs", "trace_matvecs", "seeds", "top",
    "bottom", "workers", "nproc", "threads", "jobs", "nodes", "gpus", "image_size",
}  # fmt: skip
LONG = {"board", "certify"}
"""Commands that go on until they are stopped, or train for minutes: `tests/board`, `tests/runners` cover them."""

LEFT_OUT = {
    "download",  # nothing is fetched
    "launcher", "port", "nproc", "precision",  # other processes
    "model", "winit", "stem",  # large models
    "audit", "epsilon", "per_layer",  # long
    "rerun", "as_json",
}  # fmt: skip

TRAINING = [
    "--devices",
    "cpu",
    "--threads",
    "1",
    "--limit",
    "24",
    "--bs",
    "8",
    "--epochs",
    "1",
    "--cl_epochs",
    "1",
    "--projector",
    "4-4",
    "--train-eval-samples",
    "4",
    "--probe-batch-size",
    "8",
    "--sharpness-samples",
    "4",
]
# What makes a command short; drawn options come later and win.
SAFE = {
    "train": TRAINING,
    "sharpness": [
        "--devices",
        "cpu",
        "--threads",
        "1",
        "--samples",
        "8",
        "--tol",
        "0.1",
        "--max-matvecs",
        "5",
        "--density-steps",
        "2",
    ],
    "landscape": ["--devices", "cpu", "--samples", "8", "--points", "3"],
    "sweep": [*TRAINING, "--dry-run"],
    "watch": ["--once"],  # it follows a folder until it is stopped
}
QUERIES = [
    "select run, max(trust_ratio) from layers group by run",
    "select * from layers join steps using (run, step)",
    "select * from runs",
    "select name, value from curvature join runs using (run)",
    "select upper(parameter), time from layers join steps using (run, step) where parameter like '%weight'",
    "from findings", "describe epochs", "show tables", "summarize noise",
    "select nothing from layers", "selec 1", "select 1; select 2", "", "x", "é", "select '\x1b[2J'",
    "select 1/0, 'nan'::double",
    "copy layers to 'run/x.csv'", "attach 'run/x.db'", "select * from read_text('run/run.json')", "from 'run/run.json'",
    "select * from glob('*')", "set threads = 1", "select * from range(100000)",
]  # fmt: skip
CHARTS = [*KINDS, "x", "--list"]


def _value(parameter: click.Parameter, draw: st.DrawFn) -> list[str]:
    """Words for one option, valid or not."""
    name = parameter.opts[-1]
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return [name]
    if isinstance(parameter.type, click.Choice):
        words = [*map(str, parameter.type.choices), *(["bogus"] if draw(st.integers(0, 5)) == 0 else [])]
    elif isinstance(parameter.type, click.Path):
        words = [
            "run",
            "missing",
            "",
            "run/run.json",
            "out.txt",
            "nowhere/out.csv",
            "out.json",
            "out.html",
            "out.svg",
            "run",
        ]
    elif isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        words = NUMBERS if parameter.name in UNBOUNDED else NUMBERS + HUGE
    else:
        words = [w for w in NUMBERS if w != "1e3"] + WORDS
    return [name, draw(st.sampled_from(words))]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with options; runs are called ``run`` and ``other``."""
    name = draw(st.sampled_from([name for name in COMMANDS if name not in LONG]))
    command = command_line.get_command(click.Context(command_line), name)
    assert command is not None
    words = [name]
    if isinstance(command, click.Group):
        child = draw(st.sampled_from([*command.commands]))
        words, command = [name, child], command.commands[child]
    words += SAFE.get(name, [])
    options = [p for p in command.params if isinstance(p, click.Option) and p.name not in LEFT_OUT]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)) if options else []:
        words += _value(option, draw)
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(st.sampled_from(["--bogus", "stray", "--", "--json", ""])))
    if name == "train":
        how = draw(st.sampled_from([[], ["--run-dir", "run"], ["--run-dir", "new"], ["--resume", "run"]]))
        return ["train", "--resume", "run"] if how[:1] == ["--resume"] and draw(st.booleans()) else words + how
    if name == "chart":
        words.append(draw(st.sampled_from(CHARTS)))
    if name == "query":
        words.append(draw(st.sampled_from(QUERIES)))
    if any(isinstance(p, click.Argument) for p in command.params):
        few = st.lists(st.sampled_from(["run", "run", "run", "other", "missing", "."]), min_size=0, max_size=2)
        words += draw(few) or ["run"]
    return words
