"""Which entry of the manifest is that of a tensor's group."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import tvlars_probe
from tvlars_probe.analyses.facts import PARAMETER_COLUMNS, RunFacts
from tvlars_probe.analyses.source import Source
from tvlars_probe.traces.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

RATES = {"0.weight": 0.1, "1.weight": 0.2, "2.weight": 0.3, "3.weight": 0.4}


@pytest.fixture
def facts(tmp_path: Path) -> Any:
    """Of two optimizers whose groups have these rates; some groups are empty, the first and the last ones too."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in RATES))
    lr, weights = [*RATES.values()], [[layer.weight] for layer in model]
    groups = [{"params": [], "lr": 9.0}] + [{"params": weights[k], "lr": lr[k]} for k in range(2)]
    optimizers = [
        torch.optim.SGD([*groups, {"params": []}], lr=7.0),
        torch.optim.SGD([{"params": []}, {"params": weights[2], "lr": lr[2]}, {"params": []}], lr=8.0),
        torch.optim.AdamW(weights[3], lr=lr[3]),
    ]
    with tvlars_probe.record(model, optimizers, tmp_path / "r") as rec:
        model(torch.ones(1, 2)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        rec.log()
    return Source(tvlars_probe.open_run(tmp_path / "r")).facts


@pytest.mark.parametrize("lacks", [(), ("group", "optimizer_index")], ids=["now", "older"])
def test_groups_without_parameters_shift_no_other_group(facts: Any, lacks: tuple[str, ...]) -> None:
    for group in facts.groups:
        for name in lacks:
            del group[name]
    assert {name: group["lr"] for name, group in zip(RATES, facts.group_of([*RATES]), strict=True)} == RATES
    assert facts.main_group["lr"] == facts.lr == 0.1
    assert [group.optimizer for group in facts.descriptions_of([*RATES])] == ["SGD", "SGD", "SGD", "AdamW"]


def test_a_parameter_that_the_manifest_does_not_tell_has_no_group(facts: Any) -> None:
    assert facts.group_of(["nobody"]) == [{}]
    facts.groups.clear()
    assert facts.group_of(["0.weight"]) == [{}]
    assert facts.main_group == {}


def test_a_setting_that_is_none_is_one_that_an_older_run_lacks() -> None:
    older: dict[str, Any] = {"optimizer": {"name": "lars", "momentum": 0.9}}
    newer = {"optimizer": {**older["optimizer"], "muon_rest": None}}
    assert RunFacts(name="a", config=older).settings == RunFacts(name="b", config=newer).settings
    told = RunFacts(name="c", config={"optimizer": {**newer["optimizer"], "muon_rest": "sgd"}}).settings
    assert told["optimizer.muon_rest"] == "sgd"


def test_what_entries_hold_besides_takes_no_room_in_a_frame() -> None:
    """A thousand entries of a thousand keys each of their own make a million columns."""
    entries = [{"name": f"w{i}", **{f"{i}-{j}": 0 for j in range(10)}} for i in range(100)]
    manifest = Manifest(run_id="r", parameters={"train": entries})
    facts = RunFacts.from_manifest(manifest, name="r", status="completed")
    assert tuple(facts.parameters.columns) == PARAMETER_COLUMNS
    assert len(facts.parameters) == 100


def test_a_group_below_the_first_is_none(facts: RunFacts) -> None:
    groups = [{k: v for k, v in group.items() if k != "group"} for group in facts.groups] * 2
    strange = dataclasses.replace(facts, groups=groups, parameters=facts.parameters.assign(group=-1000))
    assert strange.group_of([*RATES]) == [{}] * 4
