"""The contract suite's table is what docs/guides/integrations.md shows, and each of its tests exists."""

from __future__ import annotations

from importlib import import_module

import pytest

from tests.integrations.contract import COLUMNS, CONTRACT, PAGE, page


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.integrations.contract"


@pytest.mark.parametrize("name", CONTRACT)
def test_each_cell_is_tested_or_says_why_not(name: str) -> None:
    assert CONTRACT[name].keys() == COLUMNS.keys()
    for trainer, cell in CONTRACT[name].items():
        assert cell.told
        if cell.test is None:
            continue
        module, _, function = cell.test.rpartition(".")
        where = module if module.startswith("tests.") else f"tests.integrations.{module}"
        test = getattr(import_module(where), function)
        given = [mark.args[1] for mark in getattr(test, "pytestmark", []) if mark.args[:1] == ("trainer",)]
        assert not given or trainer in given[0]
