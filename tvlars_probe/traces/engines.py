"""The frames that rows come in: pandas, polars or Arrow. The package of a frame is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow as pa

Engine = Literal["pandas", "polars", "arrow"]

ENGINES: tuple[Engine, ...] = ("pandas", "polars", "arrow")


def check_engine(engine: str) -> None:
    """Refuse an engine before any row is read.

    Raises:
        UserError: there is no such engine, or its package isn't installed.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine == "polars":
        _polars()


def framed(rows: pa.Table, engine: Engine) -> Any:
    """The rows as a frame of ``engine``. Columns of names are categories in pandas and polars."""
    if engine == "arrow":
        return rows
    return rows.to_pandas() if engine == "pandas" else _polars().from_arrow(rows)


def _polars() -> Any:
    try:
        import polars
    except ModuleNotFoundError:
        raise UserError("engine='polars' needs the package polars: pip install polars") from None
    return polars
