"""Hashes of all that commands and loops leave behind, without what differs from run to run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CLOCK_COLUMNS = {"run", "run2", "time", "step_seconds", "probe_seconds", "seconds", "measurement_id", "created_at"}
CLOCK_KEYS = {"seconds", "elapsed", "spent", "last", "run_id", "manifest", "created", "age", "start", "end", "host",
              "pid", "path", "command", "measurement_id", "created_at", "git_revision", "torch", "python",
              "tvlars_probe", "aside", "folder"}  # fmt: skip
ADDED_KEYS = {"description"}
"""Of manifests and of ``--json``: keys that later versions added. What an older one wrote stands beside them."""

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

    def call_apart(self, name: str, *words: object, keep_output: bool = True) -> None:
        """Call a command in a process of its own and keep its exit code, and what it printed."""
        done = subprocess.run(command_line(words), cwd=self.folder, capture_output=True, text=True, check=False)
        self.add(f"{name}/exit", str(done.returncode))
        if keep_output:
            self.add_text(f"{name}/out", done.stdout)

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
                self.add(f"{name}/{key}", content_of(value))


def command_line(words: Iterable[object]) -> list[str]:
    """The command as a process is started with it."""
    return [sys.executable, "-m", "tvlars_probe", *map(str, words)]


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


def content_of(value: Any) -> bytes:
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        return f"{tensor.dtype} {list(tensor.shape)} ".encode() + tensor.view(-1).view(torch.uint8).numpy().tobytes()
    return repr(value).encode()
