"""What a run lacks is told."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import tvlars_probe
from tests.traces.checking.damages import (
    parts,
    replace_by_file,
)
from tvlars_probe.errors import TraceError
from tvlars_probe.runners.checkpoints.checking import check_run, repair_run
from tvlars_probe.runs import open_run
from tvlars_probe.traces.checking.completeness import MOST_STRETCHES
from tvlars_probe.traces.gaps import Gap
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.run_directory import RunDirectory
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_missing_steps_and_untrue_manifests_are_told_but_not_mended(run: Path) -> None:
    parts(run, "steps")[2].unlink()
    parts(run, "steps")[-1].unlink()
    found = check_run(run)
    told = {(fault.path, fault.problem) for fault in found.faults}
    assert ("trace/steps", "steps 8 to 11 are missing") in told
    assert ("run.json", "says completed, but 24 of 32 steps are there") in told
    assert repair_run(run, found) is None


@pytest.mark.parametrize("status", ["completed", "interrupted", "running"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda run: shutil.rmtree(run / "trace"), "run.json"),
        (lambda run: replace_by_file(run / "trace"), "trace"),
        (lambda run: replace_by_file(run / "trace" / "steps"), "trace/steps"),
        (lambda run: replace_by_file(run / "checkpoints"), "checkpoints"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints"),
        (lambda run: shutil.rmtree(run / "trace" / "layers"), "trace/layers"),
        (lambda run: parts(run, "layers")[2].unlink(), "trace/layers"),
        (lambda run: shutil.rmtree(run / "trace" / "epochs"), "trace/epochs"),
        (lambda run: parts(run, "epochs")[2].unlink(), "trace/epochs"),
        (lambda run: ((run / ".lock").unlink(missing_ok=True), (run / ".lock").mkdir()), ".lock"),
    ],
    ids=[
        "no trace",
        "trace a file",
        "steps a file",
        "checkpoints a file",
        "no checkpoint",
        "no layers",
        "layers of some steps gone",
        "no epochs",
        "an epoch gone",
        "lock a folder",
    ],
)
def test_what_a_run_lacks_is_told(run: Path, status: str, harm: Callable[[Path], object], told: str) -> None:
    stored = Manifest.load(run)
    stored.status = status
    stored.save(run)
    assert check_run(run).faults == []
    harm(run)
    assert told in [fault.path for fault in check_run(run).faults]


def test_a_run_cut_back_and_killed_before_it_went_on_is_whole(run: Path) -> None:
    stored = Manifest.load(run)
    stored.status = "running"
    stored.save(run)
    directory = RunDirectory.take_over(run)
    directory.cut_back(20)
    directory.release()
    assert check_run(run).faults == []


def test_layers_recorded_every_few_steps_or_never_are_whole(run: Path) -> None:
    for part in parts(run, "layers"):
        rows = pq.read_table(part)
        rows = rows.filter(pc.equal(pc.bit_wise_and(rows["step"], 1), 0))
        pq.write_table(rows, part)
        part.rename(
            part.with_name(f"part-{min(rows['step'].to_pylist()):010d}-{max(rows['step'].to_pylist()):010d}.parquet")
        )
    assert "trace/layers" in [fault.path for fault in check_run(run).faults]
    for part in parts(run, "steps"):
        rows = pq.read_table(part)
        odd = pc.equal(pc.bit_wise_and(rows["step"], 1), 1)
        place = rows.column_names.index("grad_norm")
        unrecorded = pc.if_else(odd, pa.scalar(None, pa.float64()), rows["grad_norm"])
        pq.write_table(rows.set_column(place, rows.schema.field(place), unrecorded), part)
    assert check_run(run).faults == []


@pytest.mark.parametrize("step", [10**13, 2**63 - 1])
def test_a_part_of_a_far_step_makes_a_gap_and_takes_no_memory(run: Path, step: int) -> None:
    writer = TraceWriter(run / "trace", Manifest.load(run).run_id)
    writer.append("steps", {"step": [step]})
    writer.flush()
    told = {(fault.path, fault.problem) for fault in check_run(run).faults}
    assert told == {("trace/steps", f"steps 32 to {step - 1} are missing")}


def test_rows_without_a_step_are_named_with_their_part(run: Path) -> None:
    part = parts(run, "steps")[1]
    rows = pq.read_table(part)
    nulls = rows.set_column(1, pa.field("step", pa.int64()), pa.nulls(len(rows), pa.int64()))
    pq.write_table(nulls.replace_schema_metadata(rows.schema.metadata), part)
    for read in (
        lambda: open_run(run).steps(),
        lambda: open_run(run).batches("steps", ["step"], lambda batches: [*batches]),
    ):
        with pytest.raises(TraceError, match=rf"{part.name} \(rows without step\); 'tvlars-probe check"):
            read()
    assert any("holds rows without step" in fault.problem for fault in check_run(run).faults)


def test_a_table_elsewhere_does_not_hide_the_traces_steps(run: Path) -> None:
    (run / "sharpness" / "steps").mkdir(parents=True)
    assert check_run(run).steps == 32


def test_a_killed_run_is_told_what_continues_it_by_who_made_it(run: Path, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1)
    with tvlars_probe.record(None, optimizer, tmp_path / "mine", config={"lr": 0.1}):
        pass
    for path, remedy in ((run, f"train --resume {run}"), (tmp_path / "mine", "record(..., resume=)")):
        manifest = Manifest.load(path)
        manifest.status = "running"
        manifest.save(path)
        (told,) = (note for note in check_run(path).notes if "killed" in note)
        assert remedy in told
        assert ("train" in told) is (path == run)


def test_absent_epochs_are_told_in_stretches_however_many_a_manifest_claims(tmp_path: Path) -> None:
    """Steps 0, 1 and 10^12 are there, of epochs of two steps; so is the row of the third epoch."""
    phase = {"phase": "train", "first_step": 0, "epochs": 10**15, "steps_per_epoch": 2}
    Manifest(run_id="r", status="interrupted", config={"place": {}, "recording": {}}, phases=[phase]).save(tmp_path)
    writer = TraceWriter(tmp_path / "trace", "r")
    writer.append("steps", {"step": [0, 1, 10**12]})
    writer.append("epochs", {"step": [6], "epoch": [2], "phase": pa.array(["train"]).dictionary_encode()})
    writer.flush()
    stored = Manifest.load(tmp_path)
    stored.gaps = [Gap("epochs", 7, 9, "lost"), Gap("epochs", 1000, None, "lost")]
    stored.segments = [{"first_step": 0, "last_step": 10**12}]
    stored.save(tmp_path)
    told = [fault.problem for fault in check_run(tmp_path).faults if fault.path == "trace/epochs"]
    # Of the epochs that end after 2, 4, 6, ... updates the third is there, and none but the fourth ends in a gap
    # before 1000.
    assert told == ["the epochs that ended after 2 to 4 updates are missing",
                    "the epochs that ended after 10 to 998 updates are missing"]  # fmt: skip


def test_known_gaps_are_taken_out_of_what_is_missing_whatever_their_order(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", "r")
    writer.append("steps", {"step": [3, 4, 10, 20], "loss": [1.0] * 4})
    writer.flush()
    spans = [(6, 7), (0, 1), (7, 8), (12, 12), (11, 13), (15, 15), (0, 0), (21, 40), (5, 5)]
    gaps = [Gap("steps", first, last, "known") for first, last in spans]
    Manifest(run_id="r", gaps=gaps).save(tmp_path)
    assert [fault.problem for fault in check_run(tmp_path).faults] == [
        "step 2 is missing", "step 9 is missing", "step 14 is missing", "steps 16 to 19 are missing",
    ]  # fmt: skip


def test_of_many_stretches_that_are_missing_some_are_told_one_by_one(tmp_path: Path) -> None:
    """Beside as many known gaps, too, it takes no longer than they are many."""
    count = 3_000
    writer = TraceWriter(tmp_path / "trace", "r")
    writer.append("steps", {"step": range(0, 4 * count, 2), "loss": [1.0] * (2 * count)})
    writer.flush()
    Manifest(run_id="r", gaps=[Gap("steps", 2 * n + 1, 2 * n + 1, "known") for n in range(count)]).save(tmp_path)
    start = time.process_time()
    found = check_run(tmp_path)
    assert time.process_time() - start < 5
    assert len(found.faults) == MOST_STRETCHES + 1
    assert found.faults[0].problem == f"step {2 * count + 1} is missing"
    told = f"further stretches are missing from step {2 * (count + MOST_STRETCHES) + 1} on: more than 1,000 in all"
    assert (found.faults[-1].problem, found.faults[-1].repair) == (told, None)
    repair_run(tmp_path, found)
    assert len(open_run(tmp_path).manifest.gaps) == count + MOST_STRETCHES
