"""What is recorded of DTensors are the figures of whole tensors in one process, and no step sums over the ranks."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

import tvlars_probe
from tests.ranked import on_ranks
from tests.reads import CountReads
from tests.sharded import KINDS, Net, batch, losses, needs_fsdp, sharded, share, whole
from tvlars_probe import LAMB, LARS, TVLARS, GroupDescription, Scaling
from tvlars_probe.probes.readers import norms

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tvlars_probe.runs import Run

STEPS = 3


class PlainLARS(torch.optim.Optimizer):
    """w ← w − lr·q·g with q = 0.1·‖w‖/‖g‖: somebody's own, whose ratio follows from norms of whole tensors."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                assert p.grad is not None
                p.sub_(p.grad, alpha=group["lr"] * 0.1 * float(whole(p).norm() / whole(p.grad).norm()))


@tvlars_probe.describe.register
def _(optimizer: PlainLARS) -> tuple[GroupDescription, ...]:
    q = Scaling(kind="trust-ratio", eta=0.1, divisor="grad")
    return tuple(GroupDescription(optimizer="PlainLARS", scaling=q) for _ in optimizer.param_groups)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 0.01),
    "lars": lambda model: LARS(model.parameters(), 0.5, eta=0.1),
    "tvlars": lambda model: TVLARS(model.parameters(), 0.1, eta=0.1, lmbda=0.1),
    "lamb": lambda model: LAMB(model.parameters(), 0.02),
    "somebody's": lambda model: PlainLARS(model.parameters(), 0.1),
}
CLIPPED = "sgd"
HIGHEST = 0.05


def name_of(optimizer: str, kind: str, world_size: int) -> str:
    return f"{optimizer}-{kind}-{world_size}".replace(" ", "-").replace("'", "")


def recorded(rank: int, world_size: int, folder: str) -> dict[str, int]:
    """Record each optimizer on each kind of mesh; return the collectives of the steps."""
    calls = {}
    for kind in KINDS[world_size]:
        part = share(kind, rank, world_size)
        tells = kind != "fsdp and tp" or rank % 2 == 0  # the ranks of one model's parts have the same samples
        tells = tells and (kind != "tp" or rank == 0)
        for name, make in OPTIMIZERS.items():
            model, twin = sharded(kind, world_size), sharded(kind, world_size)
            optimizer, its, made = make(model), make(twin), 0
            with tvlars_probe.record(model, optimizer, f"{folder}/{name_of(name, kind, world_size)}") as rec:
                for step in range(STEPS):
                    optimizer.zero_grad()
                    loss = model(batch(step, part)).square().mean()
                    loss.backward()
                    if name == CLIPPED and kind == "fsdp":
                        rec.clip_grad_norm_(model.parameters(), HIGHEST)
                    flushes = rec._recording.wishes.flush_agreed  # before the step, if the machine is slow
                    with CommDebugMode() as counted:
                        optimizer.step()
                    made += counted.get_total_counts() - 2 * flushes
                    rec.log(loss=loss, samples=len(batch(step, part)) if tells else 0)
                    unrecorded(twin, its, batch(step, part), clips=name == CLIPPED and kind == "fsdp")
                pairs = zip(model.parameters(), twin.parameters(), strict=True)
                assert all(torch.equal(whole(p), whole(q)) for p, q in pairs)
                with torch.no_grad():
                    model(batch(0, part))  # after it FSDP2's root holds whole tensors in place of its parameters
            calls[name_of(name, kind, world_size)] = made
    return calls


def unrecorded(model: nn.Module, optimizer: torch.optim.Optimizer, samples: torch.Tensor, *, clips: bool) -> None:
    optimizer.zero_grad()
    model(samples).square().mean().backward()
    if clips:
        nn.utils.clip_grad_norm_(model.parameters(), HIGHEST)
    optimizer.step()


def alone(name: str, folder: Path, *, clips: bool) -> Run:
    """The same in one process with the whole batches."""
    model = Net()
    optimizer = OPTIMIZERS[name](model)
    with tvlars_probe.record(model, optimizer, folder / "alone", exists="new") as rec:
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = model(batch(step)).square().mean()
            loss.backward()
            if clips:
                rec.clip_grad_norm_(model.parameters(), HIGHEST)
            optimizer.step()
            rec.log(loss=loss, samples=len(batch(step)))
    return tvlars_probe.open_run(rec.path)


def differences(found: Run, expected: Run) -> dict[str, float]:
    """By column, how far figures are from those expected, in units of the largest one."""
    off = {}
    for mine, its in ((found.layers(), expected.layers()), (found.steps(), expected.steps())):
        by = ["step", "parameter"] if "parameter" in its else ["step"]
        mine, its = (frame.astype({by[-1]: "str"}).set_index(by).sort_index() for frame in (mine, its))
        assert mine.index.equals(its.index)
        for column in its.select_dtypes("number").columns.difference(["step_seconds", "probe_seconds", "epoch"]):
            assert mine[column].isna().equals(its[column].isna()), column
            scale = its[column].abs().max()
            off[f"{column} of {len(by)}"] = (
                float((mine[column] - its[column]).abs().max() / scale) if scale > 0 else 0.0
            )
    return {column: value for column, value in off.items() if not value < 1e-5}


@needs_fsdp
@pytest.mark.slow
@pytest.mark.parametrize("world_size", KINDS)
def test_rows_of_sharded_tensors_are_those_of_whole_tensors(world_size: int, tmp_path: Path) -> None:
    calls, *_ = on_ranks(recorded, world_size, tmp_path, str(tmp_path))
    off = {}
    for kind in KINDS[world_size]:
        for name in OPTIMIZERS:
            run = tvlars_probe.open_run(tmp_path / name_of(name, kind, world_size))
            expected = alone(name, tmp_path, clips=name == CLIPPED and kind == "fsdp")
            off[name, kind] = differences(run, expected)
            assert run.manifest.parameters == expected.manifest.parameters
            assert run.status == "completed"
    assert {key: worst for key, worst in off.items() if worst} == {}
    # Ours make one sum a step. Tensor parallelism alone sums gradients besides, and somebody's optimizer its own norms.
    for name, made in calls.items():
        if "-tp-" not in name.replace("-fsdp-and-tp-", "") and "somebodys" not in name:
            assert made == (STEPS if name.split("-")[0] in ("lars", "tvlars", "lamb") else 0), name


@needs_fsdp
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning", "ignore:DTensor random operators:UserWarning")
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb"])
def test_a_recorded_step_of_dtensors_on_an_accelerator_never_reads(
    name: str, mesh_of_one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path driven with CPU tensors; what the optimizer itself reads is the same without the recorder."""
    monkeypatch.setattr(norms, "reads_are_free", lambda device: False)
    model = Net()
    fully_shard(model, mesh=mesh_of_one)
    optimizer, reads = OPTIMIZERS[name](model), []
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        for step, loss in enumerate(losses(model, optimizer, range(3))):
            with CountReads() as counted:
                optimizer.step()
            reads.append(counted.reads)
            if step == 1:
                rec._recording._hooks.detach()
            assert loss > 0
    assert reads[1] == reads[2]
    assert name == "adamw" or not reads[1]  # torch's AdamW reads its counts of steps
    rows = tvlars_probe.open_run(tmp_path / "r").layers()
    assert {*rows["step"]} == {0, 1, 2, 3}
    assert (rows["update_norm"] > 0).all()


@needs_fsdp
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning", "ignore:DTensor random operators:UserWarning")
def test_dtensors_added_later_are_followed(mesh_of_one: Any, tmp_path: Path) -> None:
    model = Net()
    fully_shard(model, mesh=mesh_of_one)
    optimizer = torch.optim.SGD(model.up.parameters(), 0.1)
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        for step, loss in enumerate(losses(model, optimizer, range(3))):
            rec.log(loss=loss)
            if step == 0:
                optimizer.add_param_group({"params": [*model.head.parameters()]})
    run = tvlars_probe.open_run(tmp_path / "r")
    rows = run.layers()
    assert {*rows["parameter"][rows["step"] == 0].astype("str")} == {"up.weight", "up.bias"}
    assert {*rows["parameter"][rows["step"] == 2].astype("str")} == {"up.weight", "up.bias", "head.weight", "head.bias"}
    names = [entry["name"] for entry in run.manifest.parameters["train"] if entry["optimizer"] == 0]
    assert names == ["up.weight", "up.bias", "head.weight", "head.bias"]


def ended(rank: int, _: int, folder: str) -> str:
    """Recordings that end early, by an exception on all ranks, a reading that fails on one, and a rank that dies."""

    def train(name: str, run: str, at: int, happens: Callable[[Any], None]) -> None:
        model = sharded("fsdp", 2)
        optimizer = OPTIMIZERS[name](model)
        with tvlars_probe.record(model, optimizer, f"{folder}/{run}") as rec:
            for step, loss in enumerate(losses(model, optimizer, range(4), (rank, 2))):
                if step == at:
                    happens(rec)
                rec.log(loss=loss, samples=4)
                if step == 1:
                    rec.flush()

    def stop(_: Any) -> None:
        raise ValueError("stop")

    for name in ("sgd", "lars"):
        with contextlib.suppress(ValueError):
            train(name, f"stopped-{name}", 3, stop)

    def fail(rec: Any) -> None:
        if rank == 1:
            rec._recording.rows.layout.readers[0]._measure = lambda: stop(None)

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        train("sgd", "unread", 2, fail)

    def die(_: Any) -> None:
        if rank == 1:
            raise ValueError("the second rank dies")

    try:
        train("sgd", "died", 3, die)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__
    return "nothing"


@needs_fsdp
@pytest.mark.slow
def test_a_shards_figures_are_never_written_as_the_whole_tensors(tmp_path: Path) -> None:
    assert on_ranks(ended, 2, tmp_path, str(tmp_path)) == ["RuntimeError", "ValueError"]
    runs = {run: tvlars_probe.open_run(tmp_path / run) for run in ("stopped-sgd", "stopped-lars", "unread", "died")}
    for name in ("stopped-sgd", "died"):
        assert runs[name].status == "failed"
        # Two steps were flushed by all ranks; the others have crossed on the first rank alone.
        assert {*runs[name].layers()["step"]} == {0, 1}
        assert runs[name].steps()["grad_norm"].isna().tolist() == [False, False, True, True]
        (gap,) = runs[name].manifest.gaps
        assert (gap.table, gap.first_step, gap.last_step) == ("layers", 2, 3)
        assert "the tensors are sharded" in gap.reason
    # Ours have summed over the ranks in the step itself: only the update isn't known.
    kept = runs["stopped-lars"].layers().groupby("step")
    assert kept["update_norm"].count().tolist() == [8, 8, 0, 0]
    assert kept["grad_norm"].count().tolist() == kept["trust_ratio"].count().tolist() == [8, 8, 8, 8]
    expected = alone("lars", tmp_path, clips=False).layers().groupby("step")["grad_norm"].max().tolist()
    assert kept["grad_norm"].max().tolist()[:STEPS] == pytest.approx(expected, rel=1e-5)
    # A rank that couldn't read a step makes it none on all ranks; the training goes on.
    assert runs["unread"].status == "completed"
    assert len(runs["unread"].steps()) == 4
    assert {*runs["unread"].layers()["step"]} == {0, 1, 2}
    assert "layers and curvature are not recorded" in str(runs["unread"].manifest.notes)
