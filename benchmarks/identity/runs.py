"""What is recorded: trainings, runs that are killed and resumed, and curvature of their checkpoints."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks.identity.hashes import command_line

if TYPE_CHECKING:
    from benchmarks.identity.hashes import Record

OPTIMIZERS = {"lars": 8.0, "tvlars": 8.0, "lamb": 0.02, "sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "adagrad": 0.01,
              "rmsprop": 1e-3}  # fmt: skip
SCHEDULES = ("none", "cosine", "lars-warm")
SMALL = ["--dataset", "digits", "--limit", 144, "--batch-size", 48, "--devices", "cpu", "--threads", 1]
CLASSIFY = [*SMALL, "--epochs", 3]
TWINS = [*SMALL, "--mode", "bt", "--cl-epochs", 2, "--epochs", 2, "--projector", "16-16", "--probe-batch-size", 48]
SHARP = ["--sharpness-every", 4, "--sharpness-samples", 24, "--sharpness-tol", 0.05]


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
        record.call_apart(f"train/{name}", "train", *words, "--run-dir", name)
        record.run(name)
    for name, words in {
        "killed-tvlars": [*CLASSIFY, "--optimizer", "tvlars", "--lr", 8, "--lmbda", 0.05, *SHARP],
        "killed-ranks": [*CLASSIFY, "--optimizer", "lars", "--lr", 1, "--nproc", 2],
        "killed-bt": [*TWINS, "--optimizer", "lamb"],
    }.items():
        _kill(record, name, [*words, "--epochs", 12 if "bt" not in name else 2, "--checkpoint-steps", 2])
        record.call_apart(f"resume/{name}", "train", "--resume", name, keep_output=False)
        record.run(name)


def _kill(record: Record, name: str, words: list[object]) -> None:
    """Train in a process group of its own, and kill all of it as soon as the second checkpoint is there."""
    command, run = command_line(["train", *words, "--run-dir", name]), record.folder / name
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
            wanted = ["--top", 2, "--bottom", 1, "--trace", "--operator", operator, "--max-matvecs", 40]
            record.call(f"sharpness/{run}/{operator}", "sharpness", run, *wanted, *few, "--json", form="json")
    more = ["--per-layer", "--density", "--epsilon", "--density-steps", 12, "--density-probes", 2]
    record.call("sharpness/all", "sharpness", "variant-val", *more, *few, "--checkpoint", "all", "--json", form="json")
    record.call("sharpness/text", "sharpness", "variant-val", "--top", 3, *few, "--precision", "float64")
    record.call("sharpness/audit", "sharpness", "resnet", "--audit", "--samples", 16, "--max-matvecs", 30, *few[2:])
    record.call("sharpness/effective-unknown", "sharpness", "variant-none", "--operator", "effective", *few)
    record.call_apart("sharpness/ranks", "sharpness", "clf-lars-none", "--nproc", 2, "--top", 2, *few, "--json",
                keep_output=False)  # fmt: skip
    planes: dict[str, list[object]] = {
        "line": ["clf-lars-none", "clf-tvlars-none"],
        "one": ["clf-sgd-none"],
        "plane": ["clf-tvlars-none", "--dimensions", 2],
    }
    for name, words in planes.items():
        record.call(f"landscape/{name}", "landscape", *words, "--points", 5, *few[:4], "--json", form="json")
    record.call("landscape/bn", "landscape", "resnet", "--bn", "re-estimated", "--points", 3, *few[:4])
    for run in ("clf-lars-none", "variant-val", "clf-sgd-none", "clf-tvlars-none", "resnet"):
        record.tables(f"{run}", "sharpness")
        record.tables(f"{run}", ".")
