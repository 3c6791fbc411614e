from __future__ import annotations

import pytest

from tvlars_probe.errors import UserError
from tvlars_probe.traces.schema import TABLES, table


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_defined(name: str) -> None:
    for column in TABLES[name].columns:
        assert column.definition
        assert column.unit
    assert len({*TABLES[name].names}) == len(TABLES[name].columns)
    assert TABLES[name].names[:2] == ("run", "step")


def test_the_contract_of_layers() -> None:
    assert TABLES["layers"].names == (
        "run", "step", "parameter", "weight_norm", "grad_norm", "weight_grad_dot", "direction_norm", "adam_norm",
        "weight_adam_dot", "update_norm", "trust_ratio", "phi", "lr", "weight_spectral_norm",
        "weight_spectral_norm_error", "update_spectral_norm", "update_spectral_norm_error",
    )  # fmt: skip
    assert {c.type for c in TABLES["layers"].columns[3:]} == {"float32"}


def test_only_columns_that_may_be_null_are_told_to_be_later_additions() -> None:
    later = {(table.name, c.name) for table in TABLES.values() for c in table.columns if c.later}
    assert {("curvature", "draw"), ("spectrum", "draw")} <= later
    assert not any(TABLES[name][column].required for name, column in later)


def test_an_unknown_table_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown table 'norms' \(known: layers, steps, epochs"):
        table("norms")
