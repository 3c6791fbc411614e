"""Damage of every kind."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch

from tvlars_probe.runners.checkpoints import files as checkpoints

if TYPE_CHECKING:
    from pathlib import Path


def parts(run: Path, table: str) -> list[Path]:
    return sorted((run / "trace" / table).iterdir())


def everything(folder: Path) -> list[bytes]:
    return sorted(p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "run.json"))


def truncate(run: Path) -> str:
    part = parts(run, "layers")[3]
    part.write_bytes(part.read_bytes()[:200])
    return part.relative_to(run).as_posix()


def empty(run: Path) -> str:
    part = parts(run, "steps")[2]
    part.write_bytes(b"")
    return part.relative_to(run).as_posix()


def misname(run: Path) -> str:
    part = parts(run, "steps")[-1]
    return part.rename(part.with_name("part-0000000900-0000000999.parquet")).relative_to(run).as_posix()


def double(run: Path) -> str:
    part = parts(run, "steps")[0]
    copy = part.with_name(part.name.replace(".parquet", "-2.parquet"))
    shutil.copy(part, copy)
    return copy.relative_to(run).as_posix()


def foreign(run: Path) -> str:
    part = parts(run, "epochs")[0]
    shutil.copy(parts(run, "layers")[0], part)
    return part.relative_to(run).as_posix()


def leftover(run: Path) -> str:
    (run / "trace" / "steps" / ".part-0000000000-0000000001.parquet.7.tmp").write_bytes(b"half")
    return "trace/steps/.part-0000000000-0000000001.parquet.7.tmp"


def trial(run: Path) -> str:
    (run / "trace" / ".exchange-b-7").mkdir()
    return "trace/.exchange-b-7"


def link(run: Path) -> str:
    (run / "trace" / "spectrum").symlink_to(run.parent, target_is_directory=True)
    return "trace/spectrum"


def checkpoint(run: Path) -> str:
    path = [*checkpoints.list_checkpoints(run).values()][-1]
    path.write_bytes(path.read_bytes()[:-100])
    return path.relative_to(run).as_posix()


def other_model(run: Path) -> str:
    path = [*checkpoints.list_checkpoints(run).values()][-1]
    torch.save(checkpoints.load(path) | {"model": {"0.weight": torch.zeros(3, 3)}}, path)
    return path.relative_to(run).as_posix()


def renamed_checkpoint(run: Path) -> str:
    path = [*checkpoints.list_checkpoints(run).values()][-1]
    return path.rename(path.with_name("step-7.pt")).relative_to(run).as_posix()


def manifest(run: Path) -> str:
    path = run / "run.json"
    path.write_text(path.read_text()[:500])
    return "run.json"


DAMAGES = (
    truncate,
    empty,
    misname,
    double,
    foreign,
    leftover,
    trial,
    link,
    checkpoint,
    other_model,
    renamed_checkpoint,
    manifest,
)


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def foreign_manifest(run: Path, other: Path) -> str:
    shutil.copy(other / "run.json", run / "run.json")
    return "run.json"
