"""What a state stands for when it is written out is counted without writing it out."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from tvlars_probe.admission import limits
from tvlars_probe.admission.values import excess


def laughs(levels: int, make: Any) -> Any:
    value: Any = "ha"
    for _ in range(levels):
        value = make(value)
    return value


MAKERS: list[Any] = [lambda v: [v, v], lambda v: (v, v), lambda v: {"a": v, "b": v}, lambda v: OrderedDict(a=v, b=[v])]


@pytest.mark.parametrize("make", MAKERS, ids=["list", "tuple", "dict", "ordered"])
def test_a_billion_laughs_are_counted(make: Any) -> None:
    assert excess(laughs(10, make)) is None
    assert "written out it has more than" in (excess(laughs(40, make)) or "")


def test_the_count_is_that_of_what_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = [1, 2, 3]  # 4 values: the list and what it holds
    monkeypatch.setattr(limits, "VALUE_ELEMENTS", 1 + 3 * 4)
    assert excess([shared, shared, shared]) is None
    assert excess([shared, shared, shared, 0])


def test_long_texts_count_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VALUE_ELEMENTS", 1000)
    text = "x" * 4000
    assert excess([text]) is None
    assert excess([text] * 3)


def test_what_nests_too_deep_or_holds_itself_is_refused() -> None:
    assert excess(laughs(limits.VALUE_DEPTH, lambda v: [v])) is None
    assert excess(laughs(limits.VALUE_DEPTH + 1, lambda v: [v])) == "it nests more than 100 deep"
    assert excess(laughs(10**5, lambda v: [v])) == "it nests more than 100 deep"
    ring: list[Any] = [[]]
    ring[0].append({"a": ring})
    assert excess(ring) == "it holds itself"


def test_a_state_of_tensors_costs_what_it_may() -> None:
    assert excess({"model": {"w": torch.zeros(3)}, "lr": 0.1, "betas": (0.9, 0.99), "none": None}) is None
    assert excess(3) is None
