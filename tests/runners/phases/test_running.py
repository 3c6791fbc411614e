"""What ranks check of one another before they train."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tvlars_probe.data.registry import DataConfig
from tvlars_probe.errors import DataError
from tvlars_probe.runners.phases.running import _check_same_data


def ranks(fingerprint_of_first: str) -> Any:
    return SimpleNamespace(world_size=2, from_first=lambda _: fingerprint_of_first, any=bool)


def test_nodes_with_different_files_are_refused() -> None:
    data, other = (DataConfig(limit=limit).load() for limit in (64, 65))
    _check_same_data(ranks(data.train.fingerprint()), data)
    with pytest.raises(DataError, match="digits isn't the same on all ranks"):
        _check_same_data(ranks(other.train.fingerprint()), data)
