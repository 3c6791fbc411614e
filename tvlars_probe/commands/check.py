"""``tvlars-probe check``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tvlars_probe.analyses.wording import counted
from tvlars_probe.commands.options import Command, option
from tvlars_probe.commands.run_paths import RunPath
from tvlars_probe.commands.text import say

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.traces.checking.faults import Findings


@click.command(cls=Command, name="check")
@click.argument("run", type=RunPath())
@option("--repair", "repairs", section="Repair", is_flag=True, help=
        "Move what is broken into the folder aside/; note that, and what is missing, in the manifest.")  # fmt: skip
@option("--json", "as_json", section="Output", is_flag=True, help="For machines.")
@click.pass_context
def command(ctx: click.Context, run: Path, repairs: bool, as_json: bool) -> None:
    """Is a run whole? Reads every part, step, checkpoint and the manifest, and names what is broken or missing.

    Exit code 0: it is, or everything broken has been set aside, and what is missing noted. 1: it isn't.
    """
    found, moved, noted, aside = _checked(run, repairs), list[str](), list[str](), None
    if repairs:
        from tvlars_probe.runners.checkpoints.checking import check_run, repair_run

        aside = repair_run(run, found)
        repaired = [fault for fault in found.faults if fault.repair is not None]
        moved = [fault.path for fault in repaired if fault.repair != "note the gap"]
        noted = [f"{fault.path}: {fault.problem}" for fault in repaired if fault.repair == "note the gap"]
        # Findings and exit code are of the run as it is after the repair.
        found = check_run(run) if repaired else found
    if as_json:
        click.echo(
            json.dumps({**asdict(found), "set_aside": moved, "noted": noted, "aside": aside and str(aside)}, indent=1)
        )
    else:
        for gap in noted:
            say(f"Noted in the manifest: {gap}")
        _say(run, found, moved, aside)
    if found.faults:
        ctx.exit(1)


def _checked(run: Path, repairs: bool) -> Findings:
    """What is wrong with a run. Without torch no checkpoint is loaded, which a note says; no run is repaired so."""
    try:
        from tvlars_probe.runners.checkpoints.checking import check_run
    except ModuleNotFoundError as error:
        from tvlars_probe.extras import missing_extra
        from tvlars_probe.traces.checking.trace import check_trace

        missing = missing_extra("that", error)
        if missing is None or repairs:
            raise
        found = check_trace(run)
        found.notes.append(f"checkpoints weren't loaded; {missing}")
        return found
    return check_run(run)


def _say(run: Path, found: Findings, moved: list[str], aside: Path | None) -> None:
    """Print what was set aside and where it is now, what is wrong, and what a reader should know."""

    for path in moved:
        say(f"Set aside: {path}")
    if aside is not None:
        say(f"What was set aside is in {aside}")
    for fault in found.faults:
        say(f"{fault.path}: {fault.problem}" + (f" [--repair: {fault.repair}]" if fault.repair else ""))
    for note in found.notes:
        say(f"Note: {note}")
    counts = ((found.parts, "part"), (found.steps, "step"), (found.checkpoints, "checkpoint"))
    sound = ", ".join(counted(count, what) for count, what in counts)
    if found.faults:
        say(f"{run}: {counted(len(found.faults), 'fault')}; sound: {sound}")
    else:
        say(f"{run}: whole ({sound})")
