from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from tvlars_probe.findings.finding import Finding
from tvlars_probe.live.own_medians import Far
from tvlars_probe.live.state import Furthest, LiveState, TopEigenvalue

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_a_state_is_json_without_what_json_lacks() -> None:
    state = LiveState(
        name="r",
        path="runs/r",
        status="running",
        losses=((0, 1.0), (1, math.nan)),
        loss=math.inf,
        furthest={"grad_norm": Furthest(step=3, tensors=(Far("a", 2.0, 0.0, math.inf),))},
        sharpness=(TopEigenvalue(step=1, operator="hessian", value=2.0, error=None, limit=None, converged=True),),
        findings=(Finding(4, "loss_spike", None, math.nan, 1.0, "it rose"),),
        last_time=NOW,
    )
    plain = json.loads(json.dumps(state.as_plain(), allow_nan=False))
    assert plain["losses"] == [[0, 1.0], [1, None]]
    assert plain["loss"] is None
    assert plain["furthest"]["grad_norm"]["tensors"] == [
        {"parameter": "a", "value": 2.0, "median": 0.0, "factor": None}
    ]
    assert plain["findings"][0]["text"] == "it rose"
    assert plain["last_time"] == "2026-05-01T12:00:00.000+00:00"


def test_the_age_of_the_last_row() -> None:
    state = LiveState(name="r", path="r", status="running", last_time=NOW - timedelta(seconds=14))
    assert state.age(NOW) == 14
    assert LiveState(name="r", path="r", status="running").age(NOW) is None


@pytest.mark.parametrize(
    ("status", "goes_on"),
    [("running", True), ("damaged", True), ("completed", False), ("killed", False), ("gone", False), ("failed", False)],
)
def test_a_view_looks_on_while_more_may_come(status: str, goes_on: bool) -> None:
    assert LiveState(name="r", path="r", status=status).may_go_on is goes_on
