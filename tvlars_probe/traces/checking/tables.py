"""Checks the parts of a run's tables: each is readable and the run's own, and no row stands twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvlars_probe.errors import LaterVersionError, TraceError, UnreadableError
from tvlars_probe.traces.checking.faults import Fault, problem
from tvlars_probe.traces.datasets import BATCH_ROWS, dataset_of, distinct
from tvlars_probe.traces.footers import check_footer, first_line, refuse_unreadable, rows_in_memory
from tvlars_probe.traces.parts import list_parts
from tvlars_probe.traces.run_directory import is_led_out
from tvlars_probe.traces.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from tvlars_probe.traces.checking.faults import Findings, Repair
    from tvlars_probe.traces.manifest import Manifest
    from tvlars_probe.traces.parts import Part

Steps = np.ndarray[tuple[int], np.dtype[np.int64]]
"""An array of steps."""

ROW_KEYS = {"steps": ("step",), "layers": ("step", "parameter"), "epochs": ("phase", "epoch")}
"""Per table, the columns whose values no two rows share."""

_ROW_BYTES = 24
"""Bytes of the columns that are kept of a row."""


def table_folders(run: Path) -> list[Path]:
    """The folders of a run's tables, in ``trace/``, ``sharpness/`` or the run itself. Links are left out."""
    folders = [run / home / table for home in ("trace", "sharpness", ".") for table in TABLES]
    return [folder for folder in folders if folder.is_dir() and not is_led_out(run, folder)]


def check_table(run: Path, folder: Path, manifest: Manifest | None, found: Findings) -> list[pa.Table]:
    """Check the parts of a table.

    Args:
        run: the run directory.
        folder: the table's folder.
        manifest: the run's manifest; None if it can't be read.
        found: gets the faults, and the number of readable parts.

    Returns:
        per readable part, its rows with the columns that are compared.

    Raises:
        UnreadableError: the system refuses to read a part.
    """
    rows = []
    spans: list[tuple[Part, Steps]] = []
    most = _most_rows(folder, manifest)
    for part in list_parts(folder):
        if part.path.is_symlink():
            continue  # `checking.trace` tells of links
        try:
            read = _read(part, folder.name, manifest, most)
        except FileNotFoundError:
            continue  # merged into another meanwhile
        except UnreadableError:  # a TraceError too, but the part may be sound
            raise
        except TraceError as error:
            # A later version's part is sound as well, and is not set aside.
            repair: Repair | None = None if isinstance(error, LaterVersionError) else "set aside"
            found.faults.append(Fault(part.path.relative_to(run).as_posix(), problem(error), repair))
            continue
        found.parts += 1
        rows.append(read)
        most -= len(read)  # all parts together must fit: a few bytes on disk may stand for any number of equal rows
        spans.append((part, distinct(np.asarray(read["step"]))))
    # Measurements may repeat a step: only what training records has each row once.
    if folder.parent.name == "trace" and folder.name in ROW_KEYS:
        found.faults += _doubles(run, folder, rows, spans)
    return rows


def _most_rows(folder: Path, manifest: Manifest | None) -> int:
    """The most rows that are read of a table: twice what the run can have, so that doubled rows are still found."""
    if manifest is None or manifest.total_steps is None or folder.parent.name != "trace":
        return rows_in_memory(_ROW_BYTES)
    tensors = sum(len(entries) for entries in manifest.parameters.values())
    per_step = {"steps": 1, "epochs": 1, "layers": tensors}.get(folder.name, 0)
    return 2 * per_step * (manifest.total_steps + 1) or rows_in_memory(_ROW_BYTES)


def _read(part: Part, table: str, manifest: Manifest | None, most: int) -> pa.Table:
    """The rows of a part, with the columns that are compared.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the system refuses to read it.
        TraceError: it is damaged, foreign, not what its name says, or holds more than ``most`` rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    footer = check_footer(part.path, table, None if manifest is None else manifest.run_id)
    if footer.num_rows > most:
        raise TraceError(
            f"{part.path} claims {footer.num_rows:,} rows: with other parts more than the run, or memory, can hold"
        )
    # By grad_norm `completeness` knows the steps in which layers were recorded.
    compared = [*ROW_KEYS.get(table, ()), *TABLES[table].required, *(["grad_norm"] if table == "steps" else [])]
    kept = [*dict.fromkeys(compared)]
    schema = TABLES[table].arrow_schema()
    try:
        part_alone = dataset_of([part.path], schema)
        # All columns are decoded, since any may be damaged; the others are dropped batch by batch.
        batches = part_alone.to_batches(batch_size=BATCH_ROWS, batch_readahead=1, use_threads=False)
        compact = []
        for batch in batches:
            batch.validate(full=True)
            compact.append(batch.select(kept))
        rows = pa.Table.from_batches(compact, pa.schema([schema.field(name) for name in kept]))
    except (pa.ArrowException, OSError, OverflowError) as error:
        refuse_unreadable(part.path, error)
        raise TraceError(f"{part.path} is damaged ({first_line(error)})") from None
    if not len(rows):
        raise TraceError(f"{part.path} holds no rows")
    for name in TABLES[table].required:
        if rows[name].null_count:
            raise TraceError(f"{part.path} holds rows without {name}")
    first, last = pc.min(rows["step"]).as_py(), pc.max(rows["step"]).as_py()
    if (first, last) != (part.first_step, part.last_step):
        raise TraceError(f"{part.path} holds steps {first} to {last}, which is not what its name says")
    return rows


def _doubles(run: Path, folder: Path, rows: list[pa.Table], spans: list[tuple[Part, Steps]]) -> Iterator[Fault]:
    """Rows that stand twice. If other parts hold all steps of a part, it can be set aside."""
    import pyarrow as pa

    if not rows:
        return
    frame = pa.concat_tables(rows).unify_dictionaries().to_pandas()
    doubled = frame[frame.duplicated(list(ROW_KEYS[folder.name]))]
    if doubled.empty:
        return
    seen = np.zeros(0, dtype=np.int64)
    name = folder.relative_to(run).as_posix()
    redundant = []
    # The largest part comes first, so that a small one proves redundant. Of two with the same steps the one written
    # later does: its name is longer.
    for part, steps in sorted(spans, key=lambda pair: (-len(pair[1]), len(pair[0].path.name), pair[0])):
        if np.isin(steps, seen).all():
            redundant.append(part)
        seen = distinct(np.concatenate([seen, steps]))
    for part in redundant:
        yield Fault(f"{name}/{part.path.name}", "holds only steps that other parts hold too", "set aside")
    if not redundant:
        some = ", ".join(str(step) for step in sorted({*doubled["step"]})[:5])
        yield Fault(name, f"rows stand twice: of steps {some}")


def steps_of(rows: list[pa.Table]) -> Steps:
    """The different steps of some rows, ascending."""
    parts = [np.asarray(table["step"], dtype=np.int64) for table in rows]
    return distinct(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
