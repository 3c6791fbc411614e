"""What `tvlars-probe warmup` costs on long traces: seconds and peak memory of the whole command, import included.

    python -m benchmarks.analyses --rows 1e6 --rows 1e7

The traces are made up: LARS with warm-up on a network of 62 tensors, as ResNet-18 has, every tensor in every step. The
command runs in a process of its own, whose highest resident memory Linux reports. With --runs several such runs are
given, which must not take more memory than one: that is seen in one call.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from rich.progress import track

from benchmarks.environment import environment
from benchmarks.figures import Figure, save
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.writer import TraceWriter

TENSORS, PART_STEPS, ETA = 62, 1000, 0.001

CHILD = """
import json, pathlib, re, resource, sys, time
start = time.perf_counter()
from tvlars_probe.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end
spent, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())
print(json.dumps([spent, used.ru_utime + used.ru_stime, int(peak[1]) * 1024]), file=sys.stderr)
"""


def names() -> list[str]:
    return [f"layer{i // 2}.{('weight', 'bias')[i % 2]}" for i in range(TENSORS)]


def make_run(folder: Path, rows: int) -> Path:
    """A run directory whose table ``layers`` has about so many rows."""
    folder.mkdir(parents=True)
    steps = rows // TENSORS
    group = {"optimizer": "LARS", "eta": ETA, "weight_decay": 5e-4, "momentum": {"form": "heavy-ball", "beta": 0.9}}
    table = [
        {"name": name, "layer": name.split(".")[0], "kind": "linear", "shape": [9, 9][: 2 - i % 2], "numel": 81,
         "optimizer": 0, "group": 0, "adapted": i % 2 == 0, "decayed": i % 2 == 0}
        for i, name in enumerate(names())
    ]  # fmt: skip
    manifest = Manifest(
        run_id=folder.name, status="completed", peak_lr=1.0, steps_per_epoch=100, total_steps=steps, groups=[group],
        parameters={"train": table},
    )  # fmt: skip
    manifest.save(folder)
    writer = TraceWriter(folder / "trace", folder.name)
    for first in range(0, steps, max(PART_STEPS, -(-steps // 150))):
        append(writer, first, min(first + max(PART_STEPS, -(-steps // 150)), steps), steps)
        writer.flush()
    return folder


def append(writer: TraceWriter, first: int, last: int, steps: int) -> None:
    rng, length = np.random.default_rng(first), last - first
    t = np.repeat(np.arange(first, last), TENSORS)
    code = np.tile(np.arange(TENSORS, dtype=np.int32), length)
    w = rng.lognormal(1.0, 0.1, length * TENSORS).astype(np.float32)
    g = rng.lognormal(0.0, 0.5, length * TENSORS).astype(np.float32)
    trust = np.where(code % 2 == 0, ETA * w / g, np.float32(1.0)).astype(np.float32)
    lr = np.minimum((t + 1) / (0.1 * steps), 1.0).astype(np.float32)
    columns = {"weight_norm": w, "grad_norm": g, "direction_norm": g, "trust_ratio": trust, "lr": lr,
               "update_norm": lr * trust * g, "weight_grad_dot": w * g * np.float32(0.1)}  # fmt: skip
    parameter = pa.DictionaryArray.from_arrays(code, pa.array(names()))
    writer.append("layers", {"step": t, "parameter": parameter, **columns})
    own = np.arange(first, last)
    loss = 2.3 * np.exp(-3 * own / steps)
    writer.append("steps", {"step": own, "loss": loss, "phase": pa.array(["train"] * length).dictionary_encode()})


def measure(words: list[str]) -> tuple[float, float, float]:
    """Seconds on the clock and of the processor, and peak bytes of one call."""
    done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True)
    seconds, processor, peak = json.loads(done.stderr.splitlines()[-1])
    return seconds, processor, peak


@click.command()
@click.option("--rows", type=float, multiple=True, default=(1e6,), show_default=True, help="Rows of the table layers.")
@click.option("--runs", type=int, multiple=True, default=(1, 4), show_default=True, help="How many such runs at once.")
@click.option("--rounds", default=3, show_default=True, help="Calls with one run, of which the median is printed.")
def main(rows: tuple[float, ...], runs: tuple[int, ...], rounds: int) -> None:
    """Print seconds and MiB."""
    print(environment())
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in rows:
            made = [make_run(Path(folder, f"{count:g}-{i}"), int(count)) for i in range(max(runs))]
            for number in runs:
                words = ["warmup", *map(str, made[:number]), "--json"]
                calls = range(rounds if number == 1 else 1)  # of several runs no time is an aim
                found = [measure(words) for _ in track(calls, f"{count:,.0f} rows × {number}", transient=True)]
                seconds, processor, peak = (statistics.median(column) for column in zip(*found, strict=True))
                times = f"{seconds:6.2f} s, {processor:6.2f} s of processor time"
                print(f"warmup, {number} × {count:>12,.0f} rows  {times}  {peak / 2**20:6.0f} MiB")
                what, note = f"warmup over {number} × {count:,.0f} rows", f"{processor:.2f} s of the processor"
                if number == 1:
                    figures.append(Figure(what=what, value=seconds, aim=3 if count <= 1e6 else 10, unit="s", note=note))
                figures.append(Figure(what=f"{what}: peak memory", value=peak / 2**20, aim=1024, unit="MiB"))
    save("analyses", figures)


if __name__ == "__main__":
    main()
