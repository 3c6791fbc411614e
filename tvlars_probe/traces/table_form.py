"""What a table and a column of it are: names, types, units, definitions, and their Arrow schema."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tvlars_probe.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

SCHEMA_VERSION = 1
"""The version of the tables and of the manifest. A reader refuses a later one."""

Type = Literal["int64", "float32", "float64", "name", "bool", "time"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        name: the field's term for it.
        type: the type of its values; "name" is a dictionary of strings, "time" a UTC time in microseconds.
        unit: the unit of its values; "1" is a pure number.
        definition: what its values are.
        required: whether it is never null.
        later: whether a null is the truth about rows of earlier versions, which didn't record it. Whoever asks for any
            other column that a trace lacks gets an error.
    """

    name: str
    type: Type
    unit: str
    definition: str
    required: bool = False
    later: bool = False

    def field(self) -> pa.Field[Any]:
        """The Arrow field, with unit and definition in its metadata."""
        import pyarrow as pa

        types: dict[str, pa.DataType] = {
            "int64": pa.int64(),
            "float32": pa.float32(),
            "float64": pa.float64(),
            "bool": pa.bool_(),
            "name": pa.dictionary(pa.int32(), pa.string()),
            "time": pa.timestamp("us", tz="UTC"),
        }
        metadata = {"unit": self.unit, "definition": self.definition}
        return pa.field(self.name, types[self.type], nullable=not self.required, metadata=metadata)


@dataclass(frozen=True)
class Table:
    """A table of the trace.

    Attributes:
        name: the table's name, and that of its folder.
        about: what one row is.
        columns: its columns, in the order in which they are stored.
    """

    name: str
    about: str
    columns: tuple[Column, ...]

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise unknown(f"column of {self.name}", name, (c.name for c in self.columns))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(c.name for c in self.columns)

    def of_type(self, *types: str) -> list[str]:
        """The names of the columns of these types."""
        return [c.name for c in self.columns if c.type in types]

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The names of the columns that are never null."""
        return tuple(c.name for c in self.columns if c.required)

    def row_bytes(self, columns: Iterable[str]) -> int:
        """Bytes that a row of these columns takes in memory; a name takes the four of its index."""
        return sum({"float32": 4, "name": 4, "bool": 1}.get(self[name].type, 8) for name in columns)

    def arrow_schema(self, run_id: str | None = None) -> pa.Schema:
        """The Arrow schema; its metadata name the schema version, the table and the run."""
        import pyarrow as pa

        # Parquet keeps the metadata in the footer, where a reader checks them before it reads a row.
        footer = {"schema_version": SCHEMA_VERSION, "table": self.name, "run_id": run_id}
        return pa.schema([c.field() for c in self.columns], metadata={"tvlars_probe": json.dumps(footer)})
