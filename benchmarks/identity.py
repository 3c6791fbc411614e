"""Do two versions of this package compute the same, bit for bit? Proof of a refactoring.

    python -m benchmarks.identity record new.json                         this checkout
    PYTHONPATH=../old python benchmarks/identity.py record old.json       another one
    python -m benchmarks.identity compare old.json new.json

``record`` runs a fixed set of commands and loops: every optimizer with every schedule in both modes, their variants,
two ranks, a run that is killed and resumed, the Hessian by every operator, every analysis and every kind of chart. It
stores a hash of each column of each table, of each tensor of each checkpoint, and of each output. What differs from
one run of the same code to the next is left out: times, hosts, processes, and the random ends of identifiers.

Both sides must be recorded on one machine with the same packages, one torch thread a rank. The commands are called
through the command line alone, and the loops through the public API, so that neither side's layout matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPTIMIZERS = {"lars": 8.0, "tvlars": 8.0, "lamb": 0.02, "sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "adagrad": 0.01,
              "rmsprop": 1e-3}  # fmt: skip
SCHEDULES = ("none", "cosine", "lars-warm")
CLOCK_COLUMNS = {"run", "run2", "time", "step_seconds", "probe_seconds", "seconds", "measurement_id", "created_at"}
CLOCK_KEYS = {"seconds", "elapsed", "spent", "last", "run_id", "manifest", "created", "age", "start", "end", "host",
              "pid", "path", "command", "measurement_id", "created_at", "git_revision", "torch", "python",
              "tvlars_probe", "aside", "folder"}  # fmt: skip
ADDED_KEYS = {"description"}
"""Of manifests and of ``--json``: keys that later versions added. What an older one wrote stands beside them."""

SMALL = ["--dataset", "digits", "--limit", 144, "--batch-size", 48, "--devices", "cpu", "--threads", 1]
CLASSIFY = [*SMALL, "--epochs", 3]
TWINS = [*SMALL, "--mode", "bt", "--cl-epochs", 2, "--epochs", 2, "--projector", "16-16", "--probe-batch-size", 48]
SHARP = ["--sharpness-every", 4, "--sharpness-samples", 24, "--sharpness-tol", 0.05]
CHARTS = ("loss", "accuracy", "trust-ratio", "lnr", "grad-norm", "rates", "explosions", "warmup", "sharpness",
          "density", "blocks", "gap", "comparison", "learning-rates", "landscape", "landscape-map")  # fmt: skip

_PATTERNS = [
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+\d\d:\d\d|Z)?"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (s|min|h|d)\b"), "DURATION"),
    (re.compile(r"\.[0-9a-f]{6}\b"), ".ID"),
    (re.compile(r"\bpid\b\D{1,40}\d+"), "PID"),
]


def digest(content: bytes | str) -> str:
    """A short hash."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=12).hexdigest()


@dataclass
class Record:
    """Hashes by what they are of."""

    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, content: bytes | str) -> None:
        """Keep one hash; a name stands once."""
        assert name not in self.hashes, name
        self.hashes[name] = digest(content)

    def add_text(self, name: str, text: str) -> None:
        """Keep the hash of an output without what differs from run to run."""
        text = text.replace(str(self.folder), "FOLDER")
        for pattern, word in _PATTERNS:
            text = pattern.sub(word, text)
        self.add(name, text)

    def add_json(self, name: str, text: str) -> None:
        """Keep the hash of an answer in JSON."""
        self.add_text(name, json.dumps(_plain(json.loads(text)), indent=1, sort_keys=True))

    # Commands.

    def call(self, name: str, *words: object, form: str = "text") -> None:
        """Call a command in this process and keep its exit code and what it printed."""
        code, out, err = call(*words)
        self.add(f"{name}/exit", str(code))
        self.add_json(f"{name}/out", out) if form == "json" and not code else self.add_text(f"{name}/out", out)
        self.add_text(f"{name}/err", err)

    def train(self, name: str, *words: object) -> None:
        """Train a run in this process and keep all that it left."""
        self.call(f"train/{name}", "train", *words, "--run-dir", name)
        self.run(name)

    def run(self, name: str) -> None:
        """Keep every column of every table of a run, its checkpoints and its manifest."""
        run = self.folder / name
        self.tables(name)
        for path in sorted((run / "checkpoints").glob("step-*.pt")):
            self.checkpoint(f"{name}/{path.name}", path)
        manifest = json.loads((run / "run.json").read_text())
        for key, value in manifest.items():
            if key not in CLOCK_KEYS and key != "segments":
                self.add_text(f"{name}/run.json/{key}", json.dumps(_plain(value), sort_keys=True))

    def tables(self, name: str, *homes: str) -> None:
        """Keep every column of the tables of a run."""
        import pandas as pd

        run = self.folder / name
        for home in homes or ("trace", "sharpness", "."):
            for folder in sorted(p for p in (run / home).glob("*") if p.is_dir()):
                if not any(folder.glob("part-*.parquet")):
                    continue
                rows = pd.read_parquet(folder)
                keys = [c for c in ("step", "parameter", "operator", "scope", "measure", "rank", "bn_mode", "engine",
                                    "epsilon", "dimensions", "alpha", "beta", "grid") if c in rows]  # fmt: skip
                rows = rows.astype({c: str for c in rows if str(rows[c].dtype) == "category"})
                rows = rows.sort_values(keys, kind="stable")
                for column in rows.columns:
                    if column not in CLOCK_COLUMNS:
                        values = rows[column].to_numpy()
                        content = values.tobytes() if values.dtype != object else repr(values.tolist()).encode()
                        self.add(f"{name}/{home}/{folder.name}/{column}", content)

    def checkpoint(self, name: str, path: Path) -> None:
        """Keep every tensor and plain value of a checkpoint."""
        import torch

        for key, value in _leaves(torch.load(path, weights_only=True)):
            if not any(part in CLOCK_KEYS for part in key.split("/")):
                self.add(f"{name}/{key}", _bytes(value))


def call(*words: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    import torch

    from tvlars_probe.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except Exception:
            code = -1
            traceback.print_exc()
    torch.set_num_threads(1)
    return code, out.getvalue(), err.getvalue()


def _plain(value: Any) -> Any:
    """JSON without clocks, hosts and what later versions added."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in CLOCK_KEYS | ADDED_KEYS}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}/{key}".strip("/"))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}/{index}")
    else:
        yield name, value


def _bytes(value: Any) -> bytes:
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        return f"{tensor.dtype} {list(tensor.shape)} ".encode() + tensor.view(-1).view(torch.uint8).numpy().tobytes()
    return repr(value).encode()


# What is run.


def trainings(record: Record) -> None:
    """Every optimizer with every schedule, in both modes, and the variants of each."""
    for optimizer, lr in OPTIMIZERS.items():
        for schedule in SCHEDULES:
            words = ["--optimizer", optimizer, "--lr", lr, "--lmbda", 0.05, "--schedule", schedule]
            record.train(f"clf-{optimizer}-{schedule}", *CLASSIFY, *words, *SHARP)
            record.train(f"bt-{optimizer}-{schedule}", *TWINS, *words)
    # The warm-up of the same peak rate, for pairs with and without.
    warm = ["--lr", OPTIMIZERS["lars"] * 256 / 48, "--schedule", "lars-warm"]
    record.train("pair-lars", *CLASSIFY, "--optimizer", "lars", *warm)
    variants: dict[str, list[object]] = {
        "lars-sum": ["--optimizer", "lars", "--lr", 8, "--denominator", "sum", "--exclusion", "undecayed"],
        "lars-grad": ["--optimizer", "lars", "--lr", 8, "--denominator", "grad", "--momentum", 0],
        "lars-clip": ["--optimizer", "lars", "--lr", 8, "--trust-clip", "--eta", 0.02],
        "lars-excluded": ["--optimizer", "lars", "--lr", 8, "--excluded-lr", 0.1, "--schedule", "lars-warm"],
        "tvlars-general": ["--optimizer", "tvlars", "--lr", 8, "--delay", 4, "--gamma-min", 0.1, "--alpha", 0.5],
        "tvlars-clip": ["--optimizer", "tvlars", "--lr", 8, "--trust-clip", "--denominator", "sum"],
        "lamb-clip": ["--optimizer", "lamb", "--lr", 0.02, "--trust-clip", "--weight-decay", 0.01],
        "lamb-adam": ["--optimizer", "lamb", "--lr", 0.02, "--adam"],
        "sgd-nesterov": ["--optimizer", "sgd", "--lr", 0.1, "--nesterov"],
        "sgd-plain": ["--optimizer", "sgd", "--lr", 0.1, "--momentum", 0],
        "norms": ["--record", "norms", "--record-every", 2],
        "none": ["--record", "none"],
        "micro": ["--micro-batch", 16, "--optimizer", "sgd"],
        "bf16": ["--precision", "bf16", "--lr", 1],
        "float64": ["--precision", "float64", "--lr", 1],
        "val": ["--val", 0.2, "--keep-checkpoints", 0, "--checkpoint-every", 1],
        "augmented": ["--augmentation", "standard", "--winit", "xavier_uniform"],
        "diverging": ["--optimizer", "sgd", "--lr", 1e6],
        "log": ["--sharpness-every", "log", "--sharpness-samples", 16, "--sharpness-operators", "relative"],
        "steps": ["--checkpoint-steps", 2, "--keep-checkpoints", 3],
    }
    for name, words in variants.items():
        record.train(f"variant-{name}", *CLASSIFY, *words)
    record.train("resnet", *SMALL, "--limit", 48, "--batch-size", 24, "--epochs", 1, "--model", "resnet18", "--lr", 1,
                 *SHARP, "--sharpness-bn", "frozen-batch")  # fmt: skip
    record.train("bt-backbone", *TWINS, "--lr-backbone", 0.01, "--lr", 1, *SHARP)
    record.call("train/again", "train", *CLASSIFY, "--optimizer", "lars", "--lr", 8, "--lmbda", 0.05, "--run-dir",
                "clf-lars-none")  # fmt: skip
    record.call("train/other", "train", *CLASSIFY, "--optimizer", "lars", "--lr", 9, "--run-dir", "clf-lars-none")


def ranks_and_kills(record: Record) -> None:
    """Two ranks; a run killed after its second checkpoint and resumed, alone and on two ranks."""
    for name, words in {
        "ranks-lars": [*CLASSIFY, "--optimizer", "lars", "--lr", 1, *SHARP, "--nproc", 2],
        "ranks-lamb": [*CLASSIFY, "--optimizer", "lamb", "--lr", 0.01, "--nproc", 2, "--sync-bn"],
        "ranks-bt": [*TWINS, "--lr", 1, "--nproc", 2],
    }.items():
        _in_process(record, f"train/{name}", "train", *words, "--run-dir", name)
        record.run(name)
    for name, words in {
        "killed-tvlars": [*CLASSIFY, "--optimizer", "tvlars", "--lr", 8, "--lmbda", 0.05, *SHARP],
        "killed-ranks": [*CLASSIFY, "--optimizer", "lars", "--lr", 1, "--nproc", 2],
        "killed-bt": [*TWINS, "--optimizer", "lamb"],
    }.items():
        _kill(record, name, [*words, "--epochs", 12 if "bt" not in name else 2, "--checkpoint-steps", 2])
        _in_process(record, f"resume/{name}", "train", "--resume", name, keep_output=False)
        record.run(name)


def _in_process(record: Record, name: str, *words: object, keep_output: bool = True) -> None:
    done = subprocess.run(_command(words), cwd=record.folder, capture_output=True, text=True, check=False)
    record.add(f"{name}/exit", str(done.returncode))
    if keep_output:
        record.add_text(f"{name}/out", done.stdout)


def _command(words: Any) -> list[str]:
    return [sys.executable, "-m", "tvlars_probe", *map(str, words)]


def _kill(record: Record, name: str, words: list[object]) -> None:
    """Train in a process group of its own, and kill all of it as soon as the second checkpoint is there."""
    command, run = _command(["train", *words, "--run-dir", name]), record.folder / name
    with subprocess.Popen(
        command, cwd=record.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None and not any((run / "checkpoints").glob("step-[2-9]*.pt")):
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def curvature(record: Record) -> None:
    """The Hessian at checkpoints: every operator, measure, BatchNorm mode and engine, one rank and two."""
    few = ["--samples", 32, "--devices", "cpu", "--threads", 1]
    for run in ("clf-lars-none", "clf-lamb-cosine", "clf-adam-none", "clf-rmsprop-none", "clf-adagrad-none",
                "clf-sgd-none", "clf-adamw-none", "clf-tvlars-none", "bt-lars-none"):  # fmt: skip
        for operator in ("hessian", "effective", "relative"):
            words = ["--top", 2, "--bottom", 1, "--trace", "--operator", operator, "--max-matvecs", 40]
            record.call(f"sharpness/{run}/{operator}", "sharpness", run, *words, *few, "--json", form="json")
    more = ["--per-layer", "--density", "--epsilon", "--density-steps", 12, "--density-probes", 2]
    record.call("sharpness/all", "sharpness", "variant-val", *more, *few, "--checkpoint", "all", "--json", form="json")
    record.call("sharpness/text", "sharpness", "variant-val", "--top", 3, *few, "--precision", "float64")
    record.call("sharpness/audit", "sharpness", "resnet", "--audit", "--samples", 16, "--max-matvecs", 30, *few[2:])
    record.call("sharpness/effective-unknown", "sharpness", "variant-none", "--operator", "effective", *few)
    _in_process(record, "sharpness/ranks", "sharpness", "clf-lars-none", "--nproc", 2, "--top", 2, *few, "--json",
                keep_output=False)  # fmt: skip
    for name, words in {"line": ["clf-lars-none", "clf-tvlars-none"], "one": ["clf-sgd-none"],
                        "plane": ["clf-tvlars-none", "--dimensions", 2]}.items():  # fmt: skip
        record.call(f"landscape/{name}", "landscape", *words, "--points", 5, *few[:4], "--json", form="json")
    record.call("landscape/bn", "landscape", "resnet", "--bn", "re-estimated", "--points", 3, *few[:4])
    for run in ("clf-lars-none", "variant-val", "clf-sgd-none", "clf-tvlars-none", "resnet"):
        record.tables(f"{run}", "sharpness")
        record.tables(f"{run}", ".")


def analyses(record: Record) -> None:
    """Every analysis in every form, of single runs and of all of them."""
    single = ("clf-lars-none", "clf-lars-lars-warm", "clf-tvlars-none", "clf-lamb-cosine", "clf-sgd-none",
              "clf-adam-lars-warm", "clf-rmsprop-none", "bt-tvlars-none", "bt-sgd-lars-warm", "variant-lars-excluded",
              "variant-lars-clip", "variant-tvlars-clip", "variant-lamb-clip", "variant-lamb-adam", "variant-norms",
              "variant-none", "variant-diverging", "killed-tvlars", "resnet")  # fmt: skip
    for run in single:
        for command in ("warmup", "minimizer", "compare", "replay"):
            for form in ("json", "csv", "text"):
                words = [] if form == "text" else [f"--{form}"]
                record.call(f"{command}/{run}/{form}", command, run, *words, form=form)
        record.call(f"show/{run}", "show", run)
        record.call(f"show/{run}/json", "show", run, "--json", form="json")
        record.call(f"check/{run}/json", "check", run, "--json", form="json")
    everything = sorted(p.name for p in record.folder.iterdir() if (p / "run.json").is_file())
    classified = [name for name in everything if name.startswith("clf-")]
    for command in ("warmup", "minimizer", "compare"):
        record.call(f"{command}/all/json", command, *classified, "--json", form="json")
        record.call(f"{command}/all/text", command, *classified)
    record.call("warmup/pair", "warmup", "clf-lars-cosine", "pair-lars", "--json", form="json")
    record.call("compare/fields", "compare", *everything, "--rows", "optimizer,data", "--columns", "schedule,model",
                "--metric", "test_loss", "--json", form="json")  # fmt: skip
    record.call("runs", "runs", ".", "--json", form="json")
    record.call("warmup/phase", "warmup", "bt-lars-none", "--phase", "linear", "--json", form="json")
    replays: dict[str, list[object]] = {
        "denominator": ["clf-lars-none", "--denominator", "grad"],
        "tvlars": ["clf-lars-none", "--opt", "tvlars", "--lmbda", 0.1],
        "lars": ["clf-tvlars-none", "--opt", "lars", "--eta", 0.01],
        "sgd": ["clf-sgd-none", "--trust-clip"],
        "lamb": ["clf-lamb-none", "--trust-clip", "--wd", 0.1],
        "lamb-adam": ["clf-lamb-none", "--adam"],
        "not-lamb": ["clf-lars-none", "--opt", "lamb"],
        "no-effect": ["clf-lars-none", "--lmbda", 1],
        "schedule": ["clf-lars-none", "--schedule", "lars-warm", "--warmup-epochs", 1, "--lr", 2],
        "excluded": ["variant-lars-excluded", "--lr", 3, "--schedule", "cosine"],
        "bt": ["bt-lars-none", "--phase", "linear", "--exclusion", "undecayed"],
    }
    for name, words in replays.items():
        record.call(f"replay/with-{name}", "replay", *words, "--json", form="json")


def charts(record: Record) -> None:
    """Every kind of chart as its specification, and the report."""
    one = ("clf-lars-none", "clf-tvlars-none", "clf-lamb-cosine", "clf-adam-none", "variant-val", "variant-diverging")
    several = [f"clf-{optimizer}-{schedule}" for optimizer in OPTIMIZERS for schedule in SCHEDULES]
    for kind in CHARTS:
        for run in one:
            _chart(record, f"chart/{kind}/{run}", kind, run)
        _chart(record, f"chart/{kind}/all", kind, *several)
    for kind in ("warmup", "learning-rates", "loss"):
        _chart(record, f"chart/{kind}/pair", kind, "clf-lars-cosine", "pair-lars")
    record.call("chart/list", "chart", "--list", "clf-lars-none", "variant-none")
    record.call("report", "report", "clf-lars-none", "clf-lars-lars-warm", "clf-tvlars-none", "-o", "report.html")
    page = (record.folder / "report.html").read_text()
    record.add_text("report/page", page)


def _chart(record: Record, name: str, *words: object) -> None:
    path = record.folder / "chart.json"
    path.unlink(missing_ok=True)
    record.call(name, "chart", *words, "-o", path.name)
    if path.exists():
        record.add_text(f"{name}/spec", path.read_text())


def loops(record: Record) -> None:
    """Loops of other people: torch's optimizers, several at once, closures, parameters that come later."""
    import torch
    from torch import optim

    import tvlars_probe

    made: dict[str, Callable[[Any], Any]] = {
        "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=1e-3),
        "sgd-nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "adam": lambda p: optim.Adam(p, lr=1e-2, weight_decay=0.01, amsgrad=True),
        "adamw": lambda p: optim.AdamW(p, lr=1e-2),
        "adagrad": lambda p: optim.Adagrad(p, lr=1e-2, lr_decay=0.01),
        "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.9),
        "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
        "adamax": lambda p: optim.Adamax(p, lr=1e-2),
        "nadam": lambda p: optim.NAdam(p, lr=1e-3),
        "radam": lambda p: optim.RAdam(p, lr=1e-3),
        "asgd": lambda p: optim.ASGD(p, lr=1e-2),
        "rprop": lambda p: optim.Rprop(p, lr=1e-3),
        "adafactor": lambda p: optim.Adafactor(p, lr=1e-2),
        "lars": lambda p: tvlars_probe.LARS(p, lr=2.0, lars_adaptation_filter=True, weight_decay_filter=True),
        "lars-foreach": lambda p: tvlars_probe.LARS(p, lr=2.0, foreach=True, trust_clip=True),
        "tvlars": lambda p: tvlars_probe.TVLARS(p, lr=2.0, lmbda=0.1, foreach=True),
        "lamb": lambda p: tvlars_probe.LAMB(p, lr=0.01, weight_decay=0.01),
        "lamb-foreach": lambda p: tvlars_probe.LAMB(p, lr=0.01, foreach=True, trust_clip=True),
    }
    for name, build in made.items():
        model = _model()
        _loop(record, f"loop-{name}", model, [build(model.parameters())], closure=name == "sgd")
    model = _model()
    _loop(record, "loop-lbfgs", model, [optim.LBFGS(model.parameters(), lr=0.1)], closure=True)
    model = _model()
    both = [optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9), tvlars_probe.LARS(model[2].parameters(), lr=1.0)]
    _loop(record, "loop-two", model, both)
    model = _model()
    late = tvlars_probe.TVLARS(model[0].parameters(), lr=1.0, lmbda=0.05)
    _loop(record, "loop-late", model, [late], late=lambda: late.add_param_group({"params": [*model[2].parameters()]}))
    half = _model().to(torch.bfloat16)
    _loop(record, "loop-bfloat16", half, [optim.SGD(half.parameters(), lr=0.1, momentum=0.9)])


def _model() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))


def _loop(
    record: Record, name: str, model: Any, optimizers: list[Any], *, closure: bool = False, late: Any = None
) -> None:
    import torch

    import tvlars_probe

    x, y = torch.randn(64, 20), torch.randint(5, (64,))
    dtype = next(model.parameters()).dtype

    def loss_of(*_: Any) -> Any:
        for one in optimizers:
            one.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x.to(dtype)).float(), y)
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tvlars_probe.record(model, optimizers, record.folder / name, total_steps=8) as rec:
            for step in range(8):
                if step == 4 and late is not None:
                    late()
                loss = loss_of()
                for one in optimizers:
                    one.step(loss_of) if closure else one.step()
                rec.log(loss=loss, samples=64)
                if step == 3:
                    state = rec.state_dict()
            rec.log_epoch(epoch=0, test_acc1=50.0)
    record.add(f"{name}/state", repr({k: v for k, v in state.items() if k not in CLOCK_KEYS}))
    rates = tvlars_probe.applied_rates(model, optimizers)
    for key, value in rates.rates.items():
        record.add(f"{name}/applied/{key}", _bytes(value))
    record.add(f"{name}/applied", repr((sorted(rates.decay.items()), rates.limit)))
    record.run(name)


PARTS: dict[str, Callable[[Record], None]] = {
    "trainings": trainings,
    "ranks": ranks_and_kills,
    "curvature": curvature,
    "analyses": analyses,
    "charts": charts,
    "loops": loops,
}


@click.group()
def main() -> None:
    """Record what a version computes, or compare two records."""


@main.command(name="record")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these, in this order.")
def record_command(out: Path, parts: tuple[str, ...]) -> None:
    """Run everything with the package that Python finds, and write the hashes to OUT."""
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    out = out.absolute()
    import torch

    import tvlars_probe

    torch.set_num_threads(1)
    sys.argv = ["tvlars-probe"]  # a run keeps the command line that made it
    home = Path(tvlars_probe.__file__).parent.parent
    os.environ["PYTHONPATH"] = str(home)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        record = Record(Path(folder).resolve())
        for name in parts or PARTS:
            began, before = time.monotonic(), len(record.hashes)
            PARTS[name](record)
            click.echo(f"{name}: {len(record.hashes) - before:,} hashes in {time.monotonic() - began:.0f} s")
    out.write_text(json.dumps({"package": str(home), "hashes": record.hashes}, indent=0))
    click.echo(f"{len(record.hashes):,} hashes of {home}: {out}")


@main.command(name="compare")
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path, exists=True))
def compare_command(old: Path, new: Path) -> None:
    """Name every hash that differs or stands on one side only."""
    before, after = (json.loads(path.read_text())["hashes"] for path in (old, new))
    differing = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    for label, names in (
        ("differs", differing),
        ("only in the old one", before.keys() - after.keys()),
        ("only in the new one", after.keys() - before.keys()),
    ):
        for name in sorted(names):
            click.echo(f"{label}: {name}")
    equal = len(before.keys() & after.keys()) - len(differing)
    click.echo(f"{equal:,} hashes are equal of {len(before):,} old and {len(after):,} new ones")
    if equal < max(len(before), len(after)):
        sys.exit(1)


if __name__ == "__main__":
    main()
