"""What becomes of findings: the table, the call-back, and the end of the loop."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tvlars_probe
from tests.probes.small_loop import OPTIMIZERS, batch, loop, net
from tests.ranked import on_ranks
from tvlars_probe.errors import StoppedOnFinding, UserError
from tvlars_probe.findings.inspector import Inspector

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tvlars_probe import Finding, Recorder

BAD = 5
"""The step whose gradient isn't finite."""


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, index: int, bad: int = BAD) -> torch.Tensor:
    x, y = batch(index)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    if index == bad:
        next(p.grad for p in model.parameters() if p.grad is not None)[0] = math.inf
    optimizer.step()
    return loss


def recorded(
    path: Path, *, steps: int = 20, flush_after: int | None = BAD, tells: bool = True, **settings: Any
) -> tuple[Recorder, list[int]]:
    """A loop of `steps` updates, flushed after one of them; its recorder, and the steps that were made."""
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    made = []
    with tvlars_probe.record(model, optimizer, path, **settings) as rec:
        for index in range(steps):
            loss = step(model, optimizer, index)
            made.append(index)
            if tells:
                rec.log(loss=loss, samples=16)
            if index == flush_after:
                rec.flush()
    return rec, made


def test_a_finding_comes_with_its_flush_and_stands_in_the_table(tmp_path: Path) -> None:
    told: list[Finding] = []
    rec, made = recorded(tmp_path / "r", on_finding=told.append)
    (finding,) = told
    assert (finding.step, finding.rule, finding.parameter, finding.value) == (BAD, "non_finite", "0.weight", math.inf)
    assert rec.findings == (finding,)
    assert len(made) == 20
    (row,) = tvlars_probe.open_run(tmp_path / "r").findings().to_dict("records")
    assert (row["step"], row["rule"], row["parameter"], row["text"]) == (
        BAD, "non_finite", "0.weight", finding.text,
    )  # fmt: skip
    with pytest.raises(AttributeError):
        finding.step = 3  # type: ignore[misc]


@pytest.mark.parametrize("tells", [True, False])
def test_stop_on_ends_the_loop_in_the_next_step_and_the_trace_is_whole(tmp_path: Path, tells: bool) -> None:
    rec, made = recorded(tmp_path / "r", stop_on=("non_finite",), tells=tells)
    assert made == [*range(BAD + 2)]
    run = tvlars_probe.open_run(tmp_path / "r")
    assert run.steps()["step"].tolist() == made
    assert rec.stop_agreed
    assert run.status == ("diverged" if tells else "interrupted")  # the loss that follows is NaN
    assert run.manifest.notes[-1].startswith(f"stopped on the finding of step {BAD}: non_finite: the gradient of")


def test_a_finding_that_no_rule_of_stop_on_made_ends_nothing(tmp_path: Path) -> None:
    _, made = recorded(tmp_path / "r", stop_on=("phi_dead",))
    assert len(made) == 20


def test_stop_on_applies_its_rules_whatever_else_is_applied(tmp_path: Path) -> None:
    rec, made = recorded(tmp_path / "r", findings=("none",), stop_on=["non_finite"])
    assert len(made) == BAD + 2
    assert [finding.rule for finding in rec.findings] == ["non_finite"]
    rec, _ = recorded(tmp_path / "s", findings=())
    assert rec.findings == ()
    assert not (tmp_path / "s" / "trace" / "findings").exists()


def test_the_stop_goes_past_handlers_of_errors_of_other_loops(tmp_path: Path) -> None:
    """Only the recorder whose finding it is takes the stop."""
    outer = tvlars_probe.record(net(), OPTIMIZERS["sgd"](net().parameters()), tmp_path / "outer")
    with pytest.raises(StoppedOnFinding), outer:
        raise StoppedOnFinding("another's")
    assert tvlars_probe.open_run(tmp_path / "outer").status == "failed"


def raising(finding: Finding) -> None:
    raise RuntimeError(f"no mail for {finding.rule}")


def test_a_call_back_that_raises_is_told_once_and_breaks_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")  # in a program that takes warnings for errors
        _, made = recorded(tmp_path / "r", on_finding=raising)
    assert len(made) == 20
    (warning,) = caught
    assert "on_finding failed at step 5, and is called no more: RuntimeError: no mail for non_finite" in str(
        warning.message
    )
    run = tvlars_probe.open_run(tmp_path / "r")
    assert any("no mail for non_finite" in note for note in run.manifest.notes)
    assert len(run.findings()) == 1


def test_a_rule_that_fails_ends_findings_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Inspector, "inspect", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        _, made = recorded(tmp_path / "r")
    assert len(made) == 20
    assert len(caught) == 1
    assert "findings end before step 0: a rule has failed: ZeroDivisionError: planted" in str(caught[0].message)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"findings": ("nan",)}, r"unknown rule in findings 'nan' \(known: non_finite, "),
        ({"stop_on": "loss_spikes"}, "unknown rule in stop_on 'loss_spikes'"),
        ({"findings": None}, r"findings takes ids of rules, such as \('non_finite',\), got None"),
        ({"stop_on": True}, r"stop_on takes ids of rules, such as \('non_finite',\), got True"),
        ({"stop_on": [["non_finite"]]}, r"unknown rule in stop_on \"\['non_finite'\]\""),
        ({"on_finding": "mail"}, "on_finding= takes a function of a finding, got 'mail'"),
    ],
)
def test_settings_are_refused_before_anything_is_made(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        recorded(tmp_path / "r", **settings)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["sgd-momentum", "lars", "tvlars", "lamb"])
def test_rules_leave_the_training_as_it_is(name: str, tmp_path: Path) -> None:
    weights = []
    for rules in (None, ("all",), ("none",)):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        if rules is None:
            loop(model, optimizer, range(12))
        else:
            with tvlars_probe.record(model, optimizer, tmp_path / rules[0], findings=rules) as rec:
                loop(model, optimizer, range(12), rec)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def spiky(step_: int) -> float:
    return 1.0 + 0.1 * math.sin(step_) + {80: 50.0, 81: 50.0, 100: 500.0}.get(step_, 0.0)


def test_a_resumed_run_finds_what_one_in_one_piece_finds(tmp_path: Path) -> None:
    """Steps before the resume still count, and what was found is not found again."""
    model = net()
    optimizer = OPTIMIZERS["lars"](model.parameters())

    def steps(rec: Recorder, span: range) -> None:
        for index in span:
            step(model, optimizer, index, bad=-1)
            rec.log(loss=spiky(index))

    with tvlars_probe.record(model, optimizer, tmp_path / "whole", findings=("all",)) as rec:
        steps(rec, range(110))
    with tvlars_probe.record(model, optimizer, tmp_path / "parts", findings=("all",)) as rec:
        steps(rec, range(81))
        state = rec.state_dict()
        steps(rec, range(81, 90))
    with tvlars_probe.record(model, optimizer, tmp_path / "parts", findings=("all",), resume=state) as rec:
        steps(rec, range(81, 110))
    whole, parts = (
        tvlars_probe.open_run(tmp_path / name).findings().query("rule == 'loss_spike'") for name in ("whole", "parts")
    )
    assert whole["step"].tolist() == [80, 100]
    assert parts[["step", "value", "threshold"]].to_numpy().tolist() == pytest.approx(
        np.array(whole[["step", "value", "threshold"]])
    )


def test_a_state_of_another_version_is_no_obstacle(tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with tvlars_probe.record(model, optimizer, tmp_path / "r") as rec:
        loop(model, optimizer, range(3), rec)
        state = rec.state_dict()
    spikes = {"count": 0, "before": [10**400], "is_open": False}
    dead = {"count": 0, "highest": math.inf, "is_open": False}
    odds = (
        {"loss_spike": {"count": 1}},
        {"non_finite": 3},
        {"later_rule": {}},
        {"phi_dead": dead},
        {"loss_spike": spikes},
    )
    for odd in (*odds, None):
        state["findings"] = odd
        if odd is None:
            del state["findings"]  # of an older version
        with tvlars_probe.record(model, optimizer, tmp_path / "r", resume=state) as rec:
            loop(model, optimizer, range(3, 6), rec)
        assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == 6


def stopped(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Each rank's gradient stays finite but that of one step, which all ranks share."""
    told: list[str] = []
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    made = 0
    on_finding: Callable[[Finding], object] = lambda finding: told.append(finding.rule)  # noqa: E731
    with tvlars_probe.record(model, optimizer, folder, on_finding=on_finding, stop_on=("non_finite",)) as rec:
        for index in range(20):
            loss = step(model, optimizer, index)
            made += 1
            rec.log(loss=loss, samples=16)
            if index == BAD:
                rec.flush()
    return {"made": made, "told": told, "stopped": rec.stop_agreed}


def test_all_ranks_stop_in_the_same_step_and_the_first_alone_is_told(tmp_path: Path) -> None:
    results = on_ranks(stopped, 2, tmp_path, str(tmp_path / "r"))
    assert [one["made"] for one in results] == [BAD + 2] * 2
    assert [one["told"] for one in results] == [["non_finite"], []]
    assert all(one["stopped"] for one in results)
    assert len(tvlars_probe.open_run(tmp_path / "r").steps()) == BAD + 2
