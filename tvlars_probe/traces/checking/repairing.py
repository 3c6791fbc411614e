"""Sets aside what a check found broken: it is moved into ``aside/``, never deleted, and the manifest notes it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import RunDirectoryError
from tvlars_probe.traces.footers import check_footer
from tvlars_probe.traces.gaps import Gap, holes
from tvlars_probe.traces.manifest import FILE_NAME, Manifest
from tvlars_probe.traces.parts import list_parts, part_of, run_ids
from tvlars_probe.traces.run_directory import RunDirectory, is_led_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tvlars_probe.traces.checking.faults import Fault


def repair(run: Path, faults: Iterable[Fault], manifest: Manifest | None = None) -> Path | None:
    """Set aside what is broken, note gaps, and write a new manifest if the old one can't be read or isn't the run's.

    Args:
        run: the run directory.
        faults: what a check found. Those without a repair are passed over.
        manifest: the manifest that the last checkpoint holds, in case a new one is needed.

    Returns:
        the folder into which things were moved; None if nothing was, since gaps are noted in the manifest alone.

    Raises:
        RunDirectoryError: another process writes to the run, it can't be written, or its ``aside`` is a link.
    """
    wanted = [fault for fault in faults if fault.repair is not None]
    if not wanted:
        return None
    directory = RunDirectory.hold(run)
    aside = run / "aside" / f"repair-{secrets.token_hex(3)}"
    try:
        # Before anything is moved: this raises if nothing tells what the run was.
        manifest = _new_manifest(run, manifest) if any(f.repair == "write anew" for f in wanted) else Manifest.load(run)
        for fault in (fault for fault in wanted if fault.repair != "note the gap"):
            _move(run, fault, aside)
            manifest.notes.append(f"check --repair set {fault.path} aside: {fault.problem}")
            # After the move, so that the part itself no longer counts as holding its steps.
            manifest.gaps += _gaps(run, fault, aside, manifest.run_id)
        for gap in (fault.gap for fault in wanted if fault.gap is not None):
            if not any(known.covers(gap) for known in manifest.gaps):
                manifest.gaps.append(Gap(gap.table, gap.first_step, gap.last_step, "missing, as check --repair found"))
        manifest.save(run)
    except OSError as error:
        raise RunDirectoryError(f"{run} can't be repaired: {error.strerror or error} ({error.filename})") from None
    finally:
        directory.release()
    return aside if aside.exists() else None


def _move(run: Path, fault: Fault, aside: Path) -> None:
    source, target = run / fault.path, aside / fault.path
    # What lies behind a link isn't the run's. The file may also be gone: run.json, or one in a folder moved before.
    if is_led_out(run, source.parent) or (not source.is_symlink() and not source.exists()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _gaps(run: Path, fault: Fault, aside: Path, run_id: str) -> Iterator[Gap]:
    """The steps that a part held before it was moved aside, and that no other part holds."""
    home, _, rest = fault.path.partition("/")
    table, _, name = rest.partition("/")
    part = part_of(run / home / table / name)
    if home != "trace" or part is None:
        return
    # Name and footer may differ, which is perhaps why the part was set aside: both stretches are noted.
    for first, last in {(part.first_step, part.last_step), *_recorded(aside / fault.path, table, run_id)}:
        spans = [(other.first_step, other.last_step) for other in list_parts(run / home / table)]
        for start, end in holes(spans, first, last):
            yield Gap(table, start, end, "set aside by check --repair")


def _recorded(path: Path, table: str, run_id: str) -> Iterator[tuple[int, int]]:
    """The first and the last step in a part of the run, from its footer; nothing if the footer can't tell."""
    try:
        footer = check_footer(path, table, run_id)
        column = footer.schema.names.index("step")
        spans: list[Any] = [footer.row_group(g).column(column).statistics for g in range(footer.num_row_groups)]
    except (OSError, ValueError):
        return
    if spans and all(span is not None and span.has_min_max for span in spans):
        yield min(span.min for span in spans), max(span.max for span in spans)


def _new_manifest(run: Path, saved: Manifest | None) -> Manifest:
    """The manifest of the last checkpoint, or else one with the run_id that most parts of the trace name.

    Raises:
        RunDirectoryError: there is neither.
    """
    if saved is not None:
        saved.status = "interrupted"
        return saved
    ids = run_ids(run / "trace")
    if not ids:
        raise RunDirectoryError(
            f"{run / FILE_NAME} can't be made anew: no readable part of the trace and no checkpoint tells what the run "
            f"was; nothing was changed"
        )
    return Manifest(run_id=max({*ids}, key=ids.count), status="interrupted")
