"""Exports to MLflow: the store that MLFLOW_TRACKING_URI names, or a local file."""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from tvlars_probe.errors import UserError
from tvlars_probe.exports.names import flat

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.exports.exporter import Alert, ExportedRun, StepScalars

_MOST_METRICS, _MOST_PARAMS, _LONGEST = 1000, 100, 250
"""What MLflow takes in one call, and the characters of a name."""

_STORE = "mlflow.db"

_TAG = "tvlars_probe.export"
"""The tag by which a run is found again."""


class MlflowExporter:
    """Writes a run of MLflow: settings as parameters, findings as tags and in the artifact findings.txt."""

    def refuse_existing(self, run: ExportedRun) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI") and not (run.folder / _STORE).exists():
            return
        uri = store_in(run.folder)
        if _find(MlflowClient(tracking_uri=uri), run.project, run.run_id) is not None:
            raise UserError(
                f"MLflow's experiment {run.project} at {uri} holds {run.run_id} already: delete that run, or give "
                f"another --project or --out"
            )

    def prepare(self, run: ExportedRun) -> None:
        if os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / _STORE).exists():
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        # MLflow makes its tables in some seconds and hundreds of steps, between which a kill would leave a database
        # that it refuses from then on.
        new = run.folder / f"{_STORE}.{os.getpid()}.new"
        MlflowClient(tracking_uri=f"sqlite:///{new.absolute()}").search_experiments()
        new.replace(run.folder / _STORE)

    def begin(self, run: ExportedRun) -> None:
        uri = store_in(run.folder)
        self._client = MlflowClient(tracking_uri=uri)
        self._waiting: list[Metric] = []
        self._findings: list[str] = []
        self._names = _Names()
        found = _find(self._client, run.project, run.run_id)
        if found is None:
            experiment = self._client.get_experiment_by_name(run.project)
            where = experiment.experiment_id if experiment is not None else self._new_experiment(run, uri)
            tags = {_TAG: run.run_id, **{f"tvlars_probe.{name}": value for name, value in run.tags.items()}}
            found = self._client.create_run(where, run_name=run.name, tags=tags).info.run_id
            names = _Names()
            params = [Param(names.of(name), str(value)) for name, value in flat(run.config).items()]
            for start in range(0, len(params), _MOST_PARAMS):
                self._client.log_batch(found, params=params[start : start + _MOST_PARAMS])
        else:
            self._client.update_run(found, status="RUNNING")
        self._run = found

    def _new_experiment(self, run: ExportedRun, uri: str) -> str:
        # Without this MLflow would put artifacts into the working directory.
        place = (run.folder / "artifacts").absolute().as_uri() if uri.startswith("sqlite:") else None
        created: str = self._client.create_experiment(run.project, artifact_location=place)
        return created

    def scalars(self, point: StepScalars) -> None:
        moment = int(1000 * (time.time() if point.time is None else point.time))
        self._waiting += [
            Metric(self._names.of(name), value, moment, point.step) for name, value in point.values.items()
        ]

    def alert(self, alert: Alert) -> None:
        self._findings.append(f"step {alert.step}: {alert.rule}: {alert.text}")
        self._client.log_batch(self._run, tags=[RunTag(f"finding.{_allowed(alert.rule)}", self._findings[-1])])

    def flush(self) -> None:
        self._write()

    def note(self, text: str) -> None:
        self._client.set_tag(self._run, "tvlars_probe.note", text)

    def end(self, status: str) -> None:
        self._write()
        if self._findings:
            self._client.log_text(self._run, "\n".join(self._findings), "findings.txt")
        ended = {"completed": "FINISHED", "diverged": "FINISHED", "interrupted": "KILLED", "killed": "KILLED"}
        self._client.set_tag(self._run, "tvlars_probe.status", status)
        if status != "running":  # a run that still trains was exported: in MLflow it stays a running one
            self._client.set_terminated(self._run, ended.get(status, "FAILED"))

    def _write(self) -> None:
        for start in range(0, len(self._waiting), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=self._waiting[start : start + _MOST_METRICS])
        self._waiting = []


def store_in(folder: Path) -> str:
    """The address of the store: what MLFLOW_TRACKING_URI says, or the file mlflow.db of the folder.

    MLflow's own default would be a file of the working directory. Its store of plain files has ended: since version 3
    MLflow refuses it unless MLFLOW_ALLOW_FILE_STORE is set.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    return f"sqlite:///{folder.absolute() / _STORE}"


def _find(client: MlflowClient, project: str, run_id: str) -> str | None:
    """MLflow's id of the run that was exported under ``run_id``."""
    experiment = client.get_experiment_by_name(project)
    if experiment is None:
        return None
    # A run_id begins with the name of a folder, which may hold signs that end a text there: % stands for any.
    pattern = re.sub(r"[^\w.-]", "%", run_id)
    found: Any = client.search_runs([experiment.experiment_id], f"tags.`{_TAG}` LIKE '{pattern}'")
    return next((one.info.run_id for one in found if one.data.tags[_TAG] == run_id), None)


class _Names:
    """Names in the characters that MLflow takes, no longer than it takes them, and never one for two."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, name: str) -> str:
        """The name under which ``name`` is sent; always the same."""
        if name not in self._given:
            plain = _allowed(name)
            if len(plain) > _LONGEST or plain in self._taken:
                # What the figure is stands in front, which tensor's it is at the end.
                plain = f"{plain[:100].rstrip('/')}_{_hash(name)}_{plain[100:][-140:].lstrip('/')}".rstrip("_")
            self._given[name] = plain
            self._taken.add(plain)
        return self._given[name]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]


def _allowed(name: str) -> str:
    """The name in the characters that MLflow takes."""
    plain = re.sub(r"[^\w./: -]", "_", name, flags=re.ASCII)
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"
