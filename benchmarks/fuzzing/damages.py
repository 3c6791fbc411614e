"""Damage to the folder of a case: by accident (files cut short, emptied, overwritten), or by intent (`hostile`)."""

from __future__ import annotations

import contextlib
import json
import random
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from benchmarks.fuzzing.hostile import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Damage:
    """One thing done to the folder of a case; what it does follows from its numbers."""

    what: str
    where: int
    seed: int

    def do(self, place: Path) -> None:
        """Do it, if what it would be done to is still there."""
        if self.what in HOSTILE:
            # Two damages in a row: the first may have taken what the second looks for.
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                HOSTILE[self.what](place, random.Random(self.seed))
            return
        run = place / "run"
        files = sorted(p for p in run.rglob("*") if p.is_file() and p.name != ".lock")
        if not files:
            return
        path, draw = files[self.where % len(files)], random.Random(self.seed)
        content = path.read_bytes()
        if self.what == "cut":
            path.write_bytes(content[: draw.randrange(len(content) + 1)])
        elif self.what == "empty":
            path.write_bytes(b"")
        elif self.what == "overwrite":
            start = draw.randrange(len(content) + 1)
            path.write_bytes(content[:start] + draw.randbytes(min(64, len(content) - start)) + content[start + 64 :])
        elif self.what == "swap":
            path.write_bytes(files[draw.randrange(len(files))].read_bytes())
        elif self.what == "remove":
            path.unlink()
        elif self.what == "manifest":
            _change_manifest(run / "run.json", draw)


def _change_manifest(path: Path, draw: random.Random) -> None:
    """Put a value of another kind somewhere into it."""
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    values: list[Any] = [None, 1, -1, "x", "../../../etc", "<script>", [], {}, [1], {"a": 1}, 1e308, True, "nan", 99]
    places = list(_places(manifest))
    if places:
        home, key = draw.choice(places)
        home[key] = draw.choice(values)
    path.write_text(json.dumps(manifest))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key, item in [*(value.items() if isinstance(value, dict) else enumerate(value))]:
            yield value, key
            yield from _places(item)


def damages(*names: str) -> st.SearchStrategy[list[Damage]]:
    """One or two damages of these names."""
    return st.lists(
        st.builds(Damage, st.sampled_from(names), st.integers(0, 1000), st.integers(0, 2**16)), min_size=1, max_size=2
    )


ACCIDENTS = ("cut", "empty", "overwrite", "swap", "remove", "manifest", "manifest")
"""By how often each is to be drawn."""
