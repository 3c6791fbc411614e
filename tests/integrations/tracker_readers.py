"""What each tracker's own reader finds of an export: scalars by step and name, and texts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Found:
    scalars: dict[tuple[int, str], float] = field(default_factory=dict)
    times: dict[tuple[int, str], float] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    status: str | None = None


def tensorboard(folder: Path, run_id: str) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found = Found()
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.scalars[event.step, tag] = event.value
            found.times[event.step, tag] = event.wall_time
    for tag in events.Tags()["tensors"]:
        found.texts += [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
    return found


def wandb(folder: Path, run_id: str) -> Found:
    """W&B's reader of offline files is its compiled core; its records are read by its own protocol buffers."""
    from wandb import teardown

    teardown()  # else its service, another process, may still be writing
    found = Found()
    # A second run that begins in the same second has a folder whose name ends with -1.
    for path in sorted((folder / "wandb" / "wandb").glob(f"offline-run-*-{run_id}*/run-{run_id}.wandb")):
        for record in _records(path.read_bytes()):
            if record.HasField("history"):
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                step = int(row.pop("_step"))
                moment = row.pop("_timestamp", None)
                for name, value in row.items():
                    if not name.startswith("_"):
                        found.scalars[step, name] = float(value)
                        found.times[step, name] = moment
            if record.HasField("alert"):
                found.texts.append(record.alert.text)
            for item in record.summary.update:
                if (item.key or item.nested_key[0]) in ("export", "status"):
                    found.texts.append(json.loads(item.value_json))
            if record.HasField("run"):
                found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("exit"):
                found.status = str(record.exit.exit_code)
    return found


def _records(data: bytes) -> list[Any]:
    """The records of a .wandb file: chunks of LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    place, records, whole = 7, [], b""
    while place + 7 <= len(data):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            records.append(record)
            whole = b""
    return records


def trackio(folder: Path, run_id: str) -> Found:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    found, project = Found(), "tvlars-probe"
    (run,) = [one for one in Api().runs(project) if one.id == run_id]
    for row in SQLiteStorage.get_logs(project, run=run.name, run_id=run.id):
        for name, value in row.items():
            if name not in ("step", "timestamp"):
                found.scalars[row["step"], name] = float(value)
    found.texts = [alert["text"] for alert in run.alerts()]
    found.config = run.config or {}
    return found


def mlflow(folder: Path, run_id: str) -> Found:
    from mlflow.tracking import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}"
    client, found = MlflowClient(tracking_uri=uri), Found()
    experiment = client.get_experiment_by_name("tvlars-probe")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`tvlars_probe.export` = '{run_id}'")
    (run,) = runs
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            found.scalars[metric.step, name] = metric.value
            found.times[metric.step, name] = metric.timestamp / 1000
    found.texts = [text for name, text in run.data.tags.items() if name.startswith(("finding.", "tvlars_probe.note"))]
    found.config, found.status = dict(run.data.params), run.info.status
    return found


READERS = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}
