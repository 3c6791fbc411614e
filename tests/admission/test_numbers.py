from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvlars_probe.admission.numbers import real, share, whole
from tvlars_probe.errors import UserError


@pytest.mark.parametrize("given", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_whole_numbers_become_pythons(given: Any) -> None:
    assert type(whole("n", given, "a number")) is int
    assert whole("n", given, "a number", least=3) == 3


@pytest.mark.parametrize("given", [3.0, True, np.True_, "3", None, np.float64(3), float("nan")], ids=repr)
def test_what_is_no_whole_number_is_refused(given: Any) -> None:
    with pytest.raises(UserError, match=r"^n=.*: give a number, a whole one of 0 or more$"):
        whole("n", given, "a number")


def test_what_is_too_small_is_refused_and_none_taken_where_it_may_be_given() -> None:
    with pytest.raises(UserError, match=r"^n=0: give a number, a whole one of 1 or more, or None$"):
        whole("n", 0, "a number", least=1, optional=True)
    assert whole("n", None, "a number", optional=True) is None
    assert whole("n", -5, "a number", least=None) == -5


@pytest.mark.parametrize("given", [0, 1.5, -0.1, True, "0.5", float("nan"), None], ids=repr)
def test_a_share_lies_between_0_and_1(given: Any) -> None:
    with pytest.raises(UserError, match=r"^budget=.* is no share of the run"):
        share("budget", given, "the run")


def test_numpys_shares_are_shares() -> None:
    assert (share("budget", np.float32(0.5), "the run"), share("budget", 1, "the run")) == (0.5, 1.0)
    assert np.isnan(real(True))
