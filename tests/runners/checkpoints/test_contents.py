"""Checkpoints that torch can load, and that don't hold what they should."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.runners.checkpoints.test_resuming import TWINS, config, interrupt
from tests.runners.resumed import use_small_model
from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.runners.checkpoints import files as checkpoints
from tvlars_probe.runners.checkpoints.checking import check_run
from tvlars_probe.runners.train import resume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ABSENT = object()
NONSENSE = [None, "x", -1, 10**20, math.nan, [], {"a": 1}, torch.zeros(3, 2), ABSENT]


def places(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every node below a tree of dicts, lists and tuples."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list | tuple) else ()
    for key in keys:
        yield (*here, key)
        yield from places(tree[key], (*here, key))


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with another value at a place, or without it."""
    key, *rest = place
    kind, twin = type(tree), copy.copy(list(tree) if isinstance(tree, tuple) else tree)
    if rest:
        twin[key] = changed(twin[key], tuple(rest), value)
    elif value is ABSENT:
        del twin[key]
    else:
        twin[key] = value
    return kind(twin)


@pytest.fixture
def stopped(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a run that was interrupted within an epoch."""
    use_small_model(monkeypatch)
    interrupt(config(**request.param), tmp_path / "run", update=5)
    return next(reversed(checkpoints.list_checkpoints(tmp_path / "run").values()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of a probe that ends for its vectors are nonsense
@pytest.mark.parametrize("stopped", [{}, TWINS], ids=["classification", "Barlow Twins"], indirect=True)
def test_nonsense_anywhere_in_a_checkpoint_is_refused_or_does_no_harm(stopped: Path, tmp_path: Path) -> None:
    state, refused = torch.load(stopped, weights_only=True), 0
    trial = tmp_path / "trial" / "checkpoints" / stopped.name
    there = [place for place in places(state) if place[0] not in ("config", "manifest")]
    # Every seventh pair of a place and a value: each place meets one or two of the values.
    tried = [pair for number, pair in enumerate(itertools.product(there, NONSENSE)) if number % 7 == 1]
    for place, value in tried:
        shutil.copytree(tmp_path / "run", tmp_path / "trial")
        torch.save(changed(state, place, value), trial)
        check_run(tmp_path / "trial")
        try:
            resume(tmp_path / "trial", quiet=True)
        except RunDirectoryError as error:
            assert str(tmp_path / "trial") in str(error)  # noqa: PT017
            refused += 1
        shutil.rmtree(tmp_path / "trial")
    assert len(tried) > refused > len(tried) / 2


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("batches",), 10**6, "its last epoch ended after 4 updates, and 1000000 batches ago"),
        (("epochs",), 10**9, "it can't be in epoch 1000000000"),
        (("step",), 7, "its recorder is in step 6 of 'train'"),
        (("tally",), {}, "tally is {}"),
        (("tally",), None, "it lacks what the running epoch's batches scored"),
        (("recorder", "last_epoch"), 3, "its last epoch ended after 3 updates, and 2 batches ago"),
        (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(2), "has the shape \\[2\\]"),
        (("optimizer", "state", 0), {}, "keeps other things of some parameters"),
        (("optimizer", "state"), {}, "its optimizer's state is of other parameters"),
        (("optimizer", "param_groups", 0, "momentum"), 0.5, "its momentum is 0.5, and the run's 0.9"),
        (("optimizer", "param_groups", 0, "lr"), 1e9, "its lr is 1e\\+09, and the schedule's"),
        (("optimizer", "param_groups", 0, "num_updates"), math.nan, "its optimizer has made nan updates of 6"),
        (("scheduler", "last_epoch"), 3, "its schedule is in step 3, not 6"),
        (("rng", 0, "cpu"), torch.zeros(3), "its random generator's state isn't one"),
        (("recorder", "probes", 0, "spent"), math.nan, "nan stands among its seconds"),
    ],
)
@pytest.mark.parametrize("stopped", [{}], ids=[""], indirect=True)
def test_what_a_checkpoint_holds_wrong_is_told(stopped: Path, place: tuple[Any, ...], value: Any, told: str) -> None:
    torch.save(changed(torch.load(stopped, weights_only=True), place, value), stopped)
    before = sorted(path.stat().st_mtime_ns for path in stopped.parents[1].rglob("*") if path.is_file())
    with pytest.raises(RunDirectoryError, match=told) as caught:
        resume(stopped.parents[1], quiet=True)
    assert str(caught.value).count("doesn't hold what it should") <= 1, "no refusal is wrapped in another"
    assert sorted(path.stat().st_mtime_ns for path in stopped.parents[1].rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("stopped", [{}], ids=[""], indirect=True)
def test_a_checkpoint_of_another_run_is_refused_and_found(stopped: Path) -> None:
    run = stopped.parents[1]
    state = changed(torch.load(stopped, weights_only=True), ("recorder", "run_id"), "other.abc123")
    torch.save(state, stopped)
    with pytest.raises(RunDirectoryError, match=f"{stopped.name} .*belongs to the run 'other.abc123', not 'run\\."):
        resume(run, quiet=True)
    faults = check_run(run).faults
    assert [(fault.path, fault.repair) for fault in faults] == [(f"checkpoints/{stopped.name}", "set aside")]
