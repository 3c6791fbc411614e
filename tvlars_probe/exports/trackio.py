"""Exports to trackio: its local database, in the folder that TRACKIO_DIR names. No Space and no server is asked."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trackio.sqlite_storage import SQLiteStorage

from tvlars_probe.errors import UserError
from tvlars_probe.exports.names import flat

if TYPE_CHECKING:
    from tvlars_probe.exports.exporter import Alert, ExportedRun, StepScalars


class TrackioExporter:
    """Writes a run of trackio, and findings as its alerts.

    trackio's own `Run` isn't used: it asks the Hugging Face hub who the user is, prints, and has no times of steps.
    """

    def refuse_existing(self, run: ExportedRun) -> None:
        if any(record["id"] == run.run_id for record in SQLiteStorage.get_run_records(run.project)):
            raise UserError(
                f"trackio's project {run.project} holds {run.run_id} already: delete that run in trackio, or give "
                f"another --project"
            )

    def begin(self, run: ExportedRun) -> None:
        SQLiteStorage.validate_project_name(run.project)
        self._where = {"project": run.project, "run": run.name, "run_id": run.run_id}
        self._config: dict[str, Any] | None = {**flat(run.config), **run.tags, "_Created": _text(None)}
        self._waiting: list[StepScalars] = []

    def scalars(self, point: StepScalars) -> None:
        self._waiting.append(point)

    def alert(self, alert: Alert) -> None:
        SQLiteStorage.bulk_alert(
            **self._where,
            titles=[alert.rule],
            texts=[alert.text],
            levels=["warn"],
            steps=[alert.step],
            timestamps=[_text(alert.time)],
            alert_ids=[uuid.uuid4().hex],
        )

    def flush(self) -> None:
        self._write()

    def note(self, text: str) -> None:
        self._config = {**(self._config or {}), "export": text}

    def end(self, status: str) -> None:
        self._write()

    def _write(self) -> None:
        if self._waiting:
            SQLiteStorage.bulk_log(
                **self._where,
                metrics_list=[dict(point.values) for point in self._waiting],
                steps=[point.step for point in self._waiting],
                timestamps=[_text(point.time) for point in self._waiting],
                config=self._config,
            )
            self._waiting, self._config = [], None


def _text(seconds: float | None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat()
