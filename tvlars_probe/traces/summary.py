"""What a list of runs tells of each: taken from its manifest alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.traces.run_directory import status

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.traces.manifest import Manifest


def summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Status, data, model and main settings of the run at ``path``; what isn't known is None."""
    m = manifest
    # The configuration of a user's own loop may hold anything, or nothing, under these names.
    schedule = m.config.get("schedule")
    return {
        "run": path.name,
        "path": str(path),
        "status": status(path, m),
        "data": (m.data or {}).get("name"),
        "model": (m.model or {}).get("name"),
        "optimizer": m.groups[0].get("optimizer") if m.groups else None,
        "batch_size": m.batch_size,
        "lr": m.peak_lr if m.peak_lr is not None else (m.groups[0].get("lr") if m.groups else None),
        "schedule": schedule.get("name") if isinstance(schedule, dict) else None,
        "seed": m.seed,
        "best_test_acc1": m.best_test_acc1,
        "created": m.created,
    }
