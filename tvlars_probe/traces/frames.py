"""The tables of one run or several, each a method: as frames of pandas, of polars or of Arrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from tvlars_probe.traces.engines import Engine, check_engine, framed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute as pc

    Columns = Sequence[str] | None
    Pandas = Literal["pandas"]
    Polars = Literal["polars"]
    Arrow = Literal["arrow"]


class RowChoice(TypedDict, total=False):
    """Which rows are wanted; by default all.

    Attributes:
        steps: the first and the last step wanted, both included, or one step.
        parameters: names of the parameters wanted, or one name (tables with a column ``parameter``).
        where: any other condition, a `pyarrow.compute` expression.
    """

    steps: tuple[int, int] | int | None
    parameters: Sequence[str] | str | None
    where: pc.Expression | None


class Frames(ABC):
    """The tables of one run or several. A subclass says in `rows` where the rows are.

    Every method takes the columns wanted, which rows (`RowChoice`), and the ``engine``: "pandas" by default, "polars"
    or "arrow".
    """

    @abstractmethod
    def rows(self, table: str, columns: Columns = None, **choice: Unpack[RowChoice]) -> pa.Table:
        """Rows of a table in order of steps, as Arrow reads them.

        Args:
            table: name of the table.
            columns: the columns wanted, or the name of one; all by default.
            **choice: which rows; see `RowChoice`.

        Raises:
            UserError: there is no such table or column.
            TraceError: the trace lacks a column, a part is damaged, or memory can't hold the rows.
        """

    @overload
    def frame(
        self, table: str, columns: Columns = None, *, engine: Pandas = "pandas", **choice: Unpack[RowChoice]
    ) -> pd.DataFrame: ...
    @overload
    def frame(
        self, table: str, columns: Columns = None, *, engine: Polars, **choice: Unpack[RowChoice]
    ) -> pl.DataFrame: ...
    @overload
    def frame(self, table: str, columns: Columns = None, *, engine: Arrow, **choice: Unpack[RowChoice]) -> pa.Table: ...
    def frame(self, table: str, columns: Columns = None, *, engine: Engine = "pandas", **choice: Any) -> Any:
        """Rows of a table in order of steps, as a frame.

        Args:
            table: name of the table.
            columns: the columns wanted, or the name of one; all by default.
            engine: "pandas", "polars" or "arrow": whose frame it is.
            **choice: which rows; see `RowChoice`.

        Raises:
            UserError: there is no such table, column or engine, or polars isn't installed.
            TraceError: the trace lacks a column, a part is damaged, or memory can't hold the rows.
        """
        check_engine(engine)
        return framed(self.rows(table, columns, **choice), engine)

    @overload
    def layers(
        self, columns: Columns = None, *, engine: Pandas = "pandas", **choice: Unpack[RowChoice]
    ) -> pd.DataFrame: ...
    @overload
    def layers(self, columns: Columns = None, *, engine: Polars, **choice: Unpack[RowChoice]) -> pl.DataFrame: ...
    @overload
    def layers(self, columns: Columns = None, *, engine: Arrow, **choice: Unpack[RowChoice]) -> pa.Table: ...
    def layers(self, columns: Columns = None, *, engine: Any = "pandas", **choice: Any) -> Any:
        """`frame` of the table ``layers``."""
        return self.frame("layers", columns, engine=engine, **choice)

    @overload
    def steps(
        self, columns: Columns = None, *, engine: Pandas = "pandas", **choice: Unpack[RowChoice]
    ) -> pd.DataFrame: ...
    @overload
    def steps(self, columns: Columns = None, *, engine: Polars, **choice: Unpack[RowChoice]) -> pl.DataFrame: ...
    @overload
    def steps(self, columns: Columns = None, *, engine: Arrow, **choice: Unpack[RowChoice]) -> pa.Table: ...
    def steps(self, columns: Columns = None, *, engine: Any = "pandas", **choice: Any) -> Any:
        """`frame` of the table ``steps``."""
        return self.frame("steps", columns, engine=engine, **choice)

    @overload
    def epochs(
        self, columns: Columns = None, *, engine: Pandas = "pandas", **choice: Unpack[RowChoice]
    ) -> pd.DataFrame: ...
    @overload
    def epochs(self, columns: Columns = None, *, engine: Polars, **choice: Unpack[RowChoice]) -> pl.DataFrame: ...
    @overload
    def epochs(self, columns: Columns = None, *, engine: Arrow, **choice: Unpack[RowChoice]) -> pa.Table: ...
    def epochs(self, columns: Columns = None, *, engine: Any = "pandas", **choice: Any) -> Any:
        """`frame` of the table ``epochs``."""
        return self.frame("epochs", columns, engine=engine, **choice)

    @overload
    def curvature(
        self, columns: Columns = None, *, engine: Pandas = "pandas", **choice: Unpack[RowChoice]
    ) -> pd.DataFrame: ...
    @overload
    def curvature(self, columns: Columns = None, *, engine: Polars, **choice: Unpack[RowChoice]) -> pl.DataFrame: ...
    @overload
    def curvature(self, columns: Columns = None, *, engine: Arrow, **choice: Unpack[RowChoice]) -> pa.Table: ...
    def curvature(self, columns: Columns = None, *, engine: Any = "pandas", **choice: Any) -> Any:
        """`frame` of the table ``curvature``: measured in training and after it."""
        return self.frame("curvature", columns, engine=engine, **choice)

    @overload
    def noise(
        self, columns: Columns = None, *, engine: Pandas = "pandas", **choice: Unpack[RowChoice]
    ) -> pd.DataFrame: ...
    @overload
    def noise(self, columns: Columns = None, *, engine: Polars, **choice: Unpack[RowChoice]) -> pl.DataFrame: ...
    @overload
    def noise(self, columns: Columns = None, *, engine: Arrow, **choice: Unpack[RowChoice]) -> pa.Table: ...
    def noise(self, columns: Columns = None, *, engine: Any = "pandas", **choice: Any) -> Any:
        """`frame` of the table ``noise``: the gradient's noise, measured in training and after it."""
        return self.frame("noise", columns, engine=engine, **choice)

    @overload
    def findings(
        self, columns: Columns = None, *, engine: Pandas = "pandas", **choice: Unpack[RowChoice]
    ) -> pd.DataFrame: ...
    @overload
    def findings(self, columns: Columns = None, *, engine: Polars, **choice: Unpack[RowChoice]) -> pl.DataFrame: ...
    @overload
    def findings(self, columns: Columns = None, *, engine: Arrow, **choice: Unpack[RowChoice]) -> pa.Table: ...
    def findings(self, columns: Columns = None, *, engine: Any = "pandas", **choice: Any) -> Any:
        """`frame` of the table ``findings``: what rules found wrong while the run trained."""
        return self.frame("findings", columns, engine=engine, **choice)
