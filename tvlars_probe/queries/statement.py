"""What a query is, before it is answered: one SELECT, and which tables and columns it reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

_ALLOWED = "query takes one SELECT (also WITH ... SELECT, DESCRIBE TABLE and SHOW TABLES)"

_BY_TEXT = {"query", "query_table"}
"""Functions that take SQL, or a table's name, as text: what they read can't be told from the query."""

_WRITING = "_QUERY_NODE"
"""How DuckDB's kinds of nodes end that insert, update or delete: WITH may hold such."""


@dataclass
class Reads:
    """What a query reads.

    Attributes:
        tables: every table that it names, its own WITH clauses included; in lower case.
        names: every text in it, in lower case: the columns that it names are among them.
        whole: the tables of which it reads all columns.
    """

    tables: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)

    def columns(self, table: str, known: Sequence[str]) -> list[str]:
        """The columns that the query may need of a table.

        Args:
            table: name of the table.
            known: its columns.
        """
        return [name for name in known if table in self.whole or name in self.names]


def reads_of(connection: duckdb.DuckDBPyConnection, sql: str) -> Reads:
    """What a query reads.

    Args:
        connection: any; nothing is executed but DuckDB's parser.
        sql: the query.

    Raises:
        UserError: it isn't one SELECT, or nests too deep.
        duckdb.Error: it can't be parsed.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise UserError(f"{_ALLOWED}: {len(statements)} statements were given")
    if (kind := statements[0].type.name) != "SELECT":
        raise UserError(f"{_ALLOWED}: a statement of the kind {kind} is refused, and nothing was done")
    literal = "'" + sql.replace("'", "''") + "'"
    [[text]] = connection.execute(f"SELECT json_serialize_sql({literal})").fetchall()
    try:
        tree = json.loads(text)
    except RecursionError:
        raise UserError("the query nests too deep: write long sums as several columns or WITH clauses") from None
    if tree.get("error"):
        raise UserError(f"{_ALLOWED}: {tree.get('error_message')}")
    return _walk(tree["statements"])


def _walk(tree: Any) -> Reads:
    """Go through DuckDB's tree of a query. No recursion: a sum of many terms nests deep.

    What can't be told counts as read: a table too many takes time, and one too few would be wrong.
    """
    reads, waiting = Reads(), [(tree, dict[str, str]())]
    while waiting:
        value, scope = waiting.pop()
        if isinstance(value, str):
            reads.names.add(value.lower())
        elif isinstance(value, list):
            waiting += [(item, scope) for item in value]
        elif isinstance(value, dict):
            _refuse(value)
            if value.get("type") == "SHOW_REF" and value.get("show_type") == "DESCRIBE":
                continue  # it takes the columns, and no row
            if value.get("type") == "BASE_TABLE":
                reads.tables.add(value["table_name"].lower())
            if value.get("type") == "SELECT_NODE":
                scope = scope | _tables_in(value.get("from_table"))
            if _takes_all(value, scope):
                reads.whole |= {*scope.values()}
            waiting += [(item, scope) for item in value.values()]
    return reads


def _refuse(node: Mapping[str, Any]) -> None:
    if str(node.get("type")).endswith(_WRITING):
        kind = node["type"].removesuffix(_WRITING)
        raise UserError(f"{_ALLOWED}: a statement of the kind {kind} is refused, and nothing was done")
    if (name := str(node.get("function_name")).lower()) in _BY_TEXT:
        raise UserError(f"the function {name} is refused: name the table after FROM")


def _tables_in(from_table: Any) -> dict[str, str]:
    """The tables of a FROM clause by what they are called in it, without those of the SELECTs inside."""
    found, waiting = dict[str, str](), [from_table]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict) and not str(value.get("type")).endswith("_NODE"):
            if value.get("type") == "BASE_TABLE":
                name = value["table_name"].lower()
                found |= {name: name, (value.get("alias") or name).lower(): name}
            waiting += value.values()
    return found


def _takes_all(node: Mapping[str, Any], scope: Mapping[str, str]) -> bool:
    """Whether a node may take all columns: a star, a table's name in place of a column's, a column by its place."""
    if node.get("class") == "COLUMN_REF":
        return bool(node.get("column_names")) and node["column_names"][-1].lower() in scope
    return (
        node.get("class") in ("STAR", "POSITIONAL_REFERENCE")
        or node.get("ref_type") == "NATURAL"
        or node.get("type") == "PIVOT"
    )
