"""Traces as pandas frames, with columns and rows chosen before they are read."""

from __future__ import annotations

import collections
import functools
import glob
import operator
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tvlars_probe.errors import RunDirectoryError, TraceError
from tvlars_probe.traces.footers import check_footer, refuse_unreadable, remedy, rows_in_memory
from tvlars_probe.traces.manifest import Manifest
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.run_directory import find_runs, status
from tvlars_probe.traces.schema import table as schema_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    StrPath = str | os.PathLike[str]

T = TypeVar("T")

_BATCH_ROWS = 1 << 17
_ATTEMPTS = 5  # a part may be merged into another between being listed and being opened


class Frames(ABC):
    """The tables of one run or several as pandas frames. Subclasses say where the rows are: `frame`."""

    @abstractmethod
    def frame(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int, int] | None = None,
        parameters: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> pd.DataFrame:
        """Rows of a table in order of steps.

        Args:
            table: its name in the schema.
            columns: which columns, all by default.
            steps: first and last step wanted, both included.
            parameters: names of the parameters wanted (tables with a column ``parameter``).
            where: any other condition, a `pyarrow.compute` expression.

        Raises:
            TraceError: a column isn't in the trace, or a part is damaged.
        """

    def layers(self, columns: Sequence[str] | None = None, **choice: Any) -> pd.DataFrame:
        """`frame` of the table ``layers``."""
        return self.frame("layers", columns, **choice)

    def steps(self, columns: Sequence[str] | None = None, **choice: Any) -> pd.DataFrame:
        """`frame` of the table ``steps``."""
        return self.frame("steps", columns, **choice)

    def epochs(self, columns: Sequence[str] | None = None, **choice: Any) -> pd.DataFrame:
        """`frame` of the table ``epochs``."""
        return self.frame("epochs", columns, **choice)

    def curvature(self, columns: Sequence[str] | None = None, **choice: Any) -> pd.DataFrame:
        """`frame` of the table ``curvature``: measured in training and after it."""
        return self.frame("curvature", columns, **choice)


class Run(Frames):
    """A recorded run, in any state: being written, finished, killed, or by an older version.

    Attributes:
        path: its directory.
        name: of its directory; `open_runs` adds folders above it to those of one name.
        manifest: its manifest as it was when this object was made.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(_expanded(path))
        self.name = self.path.name
        if not self.path.is_dir():
            raise RunDirectoryError(f"there is no run at {self.path}")
        self.manifest = Manifest.load(self.path)

    def __repr__(self) -> str:
        return f"<Run {self.path} ({self.status})>"

    @property
    def status(self) -> str:
        """running, completed, diverged, interrupted, failed or killed."""
        return status(self.path, self.manifest)

    def parameters(self, phase: str | None = None) -> pd.DataFrame:
        """The table of parameters of a phase (the last one by default): name, layer, kind, shape, adapted, ..."""
        import pandas as pd

        phases = self.manifest.parameters
        chosen = phase or next(reversed(phases), "train")
        return pd.DataFrame(phases.get(chosen, []))

    def frame(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        *,
        steps: tuple[int, int] | None = None,
        parameters: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> pd.DataFrame:
        schema = schema_of(table)
        for column in columns or ():
            schema[column]
        wanted, condition = list(columns or schema.names), _condition(where, steps, parameters)
        read_columns = [*wanted, *({"step"} - {*wanted})] if table == "layers" else wanted

        def read(dataset: ds.Dataset | None) -> pa.Table:
            if dataset is None:
                return _no_rows(table, read_columns)
            if parameters is not None:
                dataset = _row_groups_of(dataset, parameters)
            self._refuse_too_many(table, read_columns, dataset, condition)
            rows = dataset.to_table(columns=read_columns, filter=condition).unify_dictionaries()
            _refuse_nulls(table, rows, dataset)
            return rows

        rows = self._with_parts(table, wanted, read)
        return (_by_step(rows).select(wanted) if table == "layers" else rows).to_pandas()

    def batches(
        self,
        table: str,
        columns: Sequence[str],
        use: Callable[[Iterator[pa.RecordBatch]], T],
        *,
        steps: tuple[int, int] | None = None,
    ) -> T:
        """Hand the rows of a table to ``use``, a batch at a time, so that they are never all there.

        They come in order of steps, those of a finished run's ``layers`` in order of parameters.

        ``use`` is called again from the start if parts are merged while it reads.

        Args:
            table: its name in the schema.
            columns: which columns.
            use: what is made of the batches; its result is handed back.
            steps: first and last step wanted, both included.

        Raises:
            TraceError: a column isn't in the trace, or a part is damaged.
        """
        wanted, condition = list(columns), _condition(None, steps, None)

        def read(dataset: ds.Dataset | None) -> T:
            if dataset is None:
                return use(iter(()))
            found = dataset.to_batches(
                columns=wanted,
                filter=condition,
                batch_size=_BATCH_ROWS,
                batch_readahead=2,
                fragment_readahead=1,
                use_threads=False,  # they would run ahead of the reader, and hold what they read
            )
            return use(_without_nulls(table, found, dataset))

        return self._with_parts(table, wanted, read)

    def _with_parts(self, table: str, columns: list[str], read: Callable[[ds.Dataset | None], T]) -> T:
        """What ``read`` makes of the table's parts, None where there are none; again where they changed meanwhile."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        folders = [self.path / home / table for home in ("trace", "sharpness", ".")]
        for attempt in range(_ATTEMPTS):
            paths = [part.path for folder in folders for part in list_parts(folder)]
            if not paths:
                return read(None)
            try:
                footers = [check_footer(path, table, self.manifest.run_id) for path in paths]
                there = [{*footer.schema.to_arrow_schema().names} for footer in footers]
                self._refuse_missing(table, columns, {*there[0]}.intersection(*there))
                schema = schema_of(table).arrow_schema()
                return read(ds.dataset([*map(str, paths)], schema=schema, format="parquet"))
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise TraceError(_unfound(table, paths)) from None
            except (pa.ArrowException, OSError, OverflowError) as error:
                raise TraceError(_damage(self.path, table, paths, error)) from None
        raise AssertionError("unreachable")

    def _refuse_too_many(
        self, table: str, columns: Sequence[str], dataset: ds.Dataset, condition: pc.Expression | None
    ) -> None:
        """Refuse rows that memory can't hold: few bytes on disk may stand for any number of equal ones."""
        most = rows_in_memory(schema_of(table).row_bytes(columns))
        if dataset.count_rows() <= most:  # of the footers alone
            return
        rows = dataset.count_rows(filter=condition)
        if rows > most:
            raise TraceError(
                f"the table {table} of {self.path} has {rows:,} rows, of which this machine's memory holds {most:,}: "
                f"choose fewer columns, steps or parameters"
            )

    def _refuse_missing(self, table: str, columns: list[str], there: Set[str]) -> None:
        missing = sorted({*columns} - there)
        if missing and columns != list(schema_of(table).names):
            raise TraceError(f"{self.path} has no column {', '.join(missing)} in {table}: an older version recorded it")


def _condition(
    where: pc.Expression | None, steps: tuple[int, int] | None, parameters: Sequence[str] | None
) -> pc.Expression | None:
    """All of these conditions; None for none."""
    import pyarrow.compute as pc

    conditions = [] if where is None else [where]
    if steps is not None:
        conditions += [pc.field("step") >= steps[0], pc.field("step") <= steps[1]]
    if parameters is not None:
        conditions.append(pc.field("parameter").isin(list(parameters)))
    return functools.reduce(operator.and_, conditions) if conditions else None


def _without_nulls(table: str, batches: Iterator[pa.RecordBatch], dataset: ds.Dataset) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        _refuse_nulls(table, batch, dataset)
        yield batch


def _refuse_nulls(table: str, rows: pa.Table | pa.RecordBatch, dataset: Any) -> None:
    """Refuse rows that lack what no row is without, and name the part."""
    for name in schema_of(table).required:
        if name not in rows.schema.names or not rows.column(name).null_count:
            continue
        for fragment in dataset.get_fragments():
            if fragment.to_table(columns=[name], schema=dataset.schema).column(name).null_count:
                what = f"a part of the table {table} is damaged: {fragment.path} (rows without {name})"
                raise TraceError(f"{what}; {remedy(Path(fragment.path))}")


def _row_groups_of(dataset: Any, parameters: Sequence[str]) -> ds.Dataset:
    """The row groups that can hold one of ``parameters`` (Arrow itself passes over statistics of dictionaries)."""
    import pyarrow.dataset as ds

    fragments = []
    for fragment in dataset.get_fragments():
        metadata = fragment.metadata
        column = metadata.schema.names.index("parameter")
        spans = [metadata.row_group(g).column(column).statistics for g in range(metadata.num_row_groups)]
        groups = [g for g, span in enumerate(spans) if _may_hold(span, parameters)]
        if groups:
            fragments.append(fragment.subset(row_group_ids=groups))
    return ds.FileSystemDataset(fragments, schema=dataset.schema, format=dataset.format)


def _may_hold(span: Any, parameters: Sequence[str]) -> bool:
    if span is None or not span.has_min_max:
        return True
    return any(span.min <= name <= span.max for name in parameters)


def _by_step(rows: pa.Table) -> pa.Table:
    """Rows in order of steps: the parts of a finished run are in order of parameters."""
    import numpy as np

    steps = rows["step"].to_numpy()
    if (steps[1:] >= steps[:-1]).all():
        return rows
    return rows.take(np.argsort(steps, kind="stable"))


def _unfound(table: str, paths: Sequence[Path]) -> str:
    """Which part it is that is listed and yet can't be opened: a link that leads nowhere."""
    path = next((path for path in paths if not path.exists()), paths[0])
    return f"a part of the table {table} leads to a file that isn't there: {path}; {remedy(path)}"


def _damage(run: Path, table: str, paths: Sequence[Path], error: BaseException) -> str:
    """Which part it is that can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(table).arrow_schema()
    for path in paths:
        try:
            pq.read_table(path, schema=schema)
        except (pa.ArrowException, OSError, OverflowError) as reason:
            refuse_unreadable(path, reason)
            return f"a part of the table {table} is damaged: {path} ({_first_line(reason)}); {remedy(path)}"
    return f"a part of the table {table} of {run} is damaged: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _no_rows(table: str, columns: Sequence[str] | None) -> pa.Table:
    schema = schema_of(table)
    return schema.arrow_schema().empty_table().select(list(columns or schema.names))


class Runs(Frames):
    """Several runs, their rows one below the other; the column ``run`` tells them apart."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = tuple(runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Run:
        return self.runs[index]

    def __repr__(self) -> str:
        return f"<Runs {', '.join(run.name for run in self.runs)}>"

    def frame(self, table: str, columns: Sequence[str] | None = None, **choice: Any) -> pd.DataFrame:
        import pandas as pd
        from pandas.api.types import union_categoricals

        frames = [run.frame(table, columns, **choice) for run in self.runs]
        if not frames:
            return _no_rows(table, columns).to_pandas()
        joined = pd.concat(frames, ignore_index=True)
        for name in schema_of(table).of_type("name"):
            if name in joined:
                joined[name] = union_categoricals([frame[name] for frame in frames])
        return joined


def open_run(path: StrPath) -> Run:
    """Open a recorded run for reading.

    Raises:
        RunDirectoryError: there is no run, or its manifest can't be read.
    """
    return Run(path)


def open_runs(paths: StrPath | Iterable[StrPath]) -> Runs:
    """Open several runs for reading.

    Args:
        paths: run directories, folders of runs, or glob patterns.

    Raises:
        RunDirectoryError: a path holds no run.
    """
    if isinstance(paths, str | Path) or hasattr(paths, "__fspath__"):
        paths = [paths]  # type: ignore[list-item]
    found: dict[Path, Run] = {}
    for given in map(_expanded, paths):
        matches = sorted(glob.glob(given)) or [given]  # noqa: PTH207 (patterns may be absolute)
        runs = [run for match in matches for run in find_runs(Path(match))]
        if not runs:
            raise RunDirectoryError(f"there is no run at {given}")
        found |= {run.resolve(): Run(run) for run in runs if run.resolve() not in found}
    _tell_apart(found)
    return Runs(found.values())


def _expanded(path: StrPath) -> str:
    return os.path.expanduser(os.fspath(path))  # noqa: PTH111 (a user unknown is no error)


def _tell_apart(runs: Mapping[Path, Run]) -> None:
    """Give those of one name as many of the folders above them as it takes."""
    depth, alike = 1, {**runs}
    while alike:
        for path, run in alike.items():
            run.name = "/".join(path.parts[-depth:])
        counts = collections.Counter(run.name for run in runs.values())
        alike = {path: run for path, run in alike.items() if counts[run.name] > 1 and len(path.parts) > depth}
        depth += 1
