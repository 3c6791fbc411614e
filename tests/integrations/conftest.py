"""What other packages warn of is theirs; what this one warns of is an error, as everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for rule in ("default", "error:::tvlars_probe", "error:TrainerProbe"):
                item.add_marker(pytest.mark.filterwarnings(rule))
