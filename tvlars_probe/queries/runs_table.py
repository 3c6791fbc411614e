"""The table ``runs`` of queries: a run's manifest as one flat row."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.names import encodable, encodable_values
from tvlars_probe.optimizers.schedules import ScheduleConfig
from tvlars_probe.traces.key_columns import RUN
from tvlars_probe.traces.manifest import in_json
from tvlars_probe.traces.manifest_entries import first_filled
from tvlars_probe.traces.table_form import Column, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvlars_probe.runs import Run
    from tvlars_probe.traces.manifest import Manifest

_FINAL = {f"{data}_{name}": unit for data in ("train", "val", "test") for name, unit in (("loss", "1"), ("acc1", "%"))}
"""Metrics of the last epoch that have a column, by their names in the table ``epochs``, with their units."""

RUNS = Table(
    "runs",
    "one row per run, from its manifest; what the manifest doesn't tell is null, and what several phases or parameter "
    "groups have is that of the first (of the groups, the first that holds a parameter)",
    (
        RUN,
        Column(
            "name", "name", "name", "name of the run directory, after folders above it where several share it", True
        ),
        Column("path", "name", "name", "path of the run directory", True),
        Column("status", "name", "name", "running, completed, diverged, interrupted, failed or killed", True),
        Column("created", "time", "UTC", "when the run began"),
        Column("mode", "name", "name", "what train did: clf, or bt for Barlow Twins"),
        Column("optimizer", "name", "name", "class of the optimizer, such as LARS"),
        Column("schedule", "name", "name", "none, cosine or lars-warm"),
        Column("warmup_epochs", "float64", "epoch", "length of the schedule's warm-up; 0 for a schedule without one"),
        Column("peak_lr", "float64", "1", "largest learning rate of the schedule"),
        Column("lr", "float64", "1", "learning rate as it was asked for, before the schedule"),
        Column("batch_size", "int64", "sample", "samples of one update, over all ranks"),
        Column("micro_batches", "int64", "1", "pieces in which a rank computes its share of the batch"),
        Column("world_size", "int64", "1", "number of ranks"),
        Column("seed", "int64", "1", "of everything random"),
        Column("weight_decay", "float64", "1", "λ of the optimizer's weight decay"),
        Column("momentum", "float64", "1", "β of the optimizer's momentum"),
        Column("eta", "float64", "1", "η, the trust coefficient"),
        Column("lmbda", "float64", "1", "TVLARS' λ, per update"),
        Column("precision", "name", "name", "precision that train computed in"),
        Column("data", "name", "name", "name of the data set"),
        Column("train_samples", "int64", "sample", "size of the training data"),
        Column("classes", "int64", "1", "number of classes of the data"),
        Column("model", "name", "name", "name of the model"),
        Column("parameters", "int64", "1", "number of the model's parameters"),
        Column("epochs", "int64", "epoch", "epochs planned"),
        Column("steps_per_epoch", "int64", "step", "updates per epoch"),
        Column("total_steps", "int64", "step", "updates planned, over all phases"),
        Column("best_test_acc1", "float64", "%", "highest top-1 accuracy on the test data at the end of any epoch"),
        Column("final_epoch", "int64", "epoch", "the last epoch that was finished, from 0"),
        *(Column(f"final_{name}", "float64", unit, f"{name} of that epoch") for name, unit in _FINAL.items()),
        Column("not_finite_step", "int64", "step", "the first step with a loss or a norm that was not finite"),
        Column("not_finite_tensor", "name", "name", "the first such tensor in it"),
        Column("config_id", "name", "name", "hash of the settings that change the numbers"),
        Column("host", "name", "name", "where the last segment of the run computed"),
        Column("device", "name", "name", "on what it computed"),
        Column("torch", "name", "name", "version of torch in it"),
        Column("tvlars_probe", "name", "name", "version of tvlars-probe in it"),
        Column("git_revision", "name", "name", "revision of the working directory in it"),
        Column("config", "name", "name", "the whole configuration as JSON: config->>'$.optimizer.nesterov'"),
    ),
)


def row_of(run: Run) -> dict[str, Any]:
    """The run's row of `RUNS`: plain values by column."""
    told = {"run": run.manifest.run_id, "name": run.name, "path": encodable(str(run.path)), "status": run.status}
    told |= _of_manifest(run.manifest)
    return {column.name: _typed(told.get(column.name), column.type) for column in RUNS.columns}


def _of_manifest(m: Manifest) -> dict[str, Any]:
    phase, group, segment = _first(m.phases), first_filled(m.groups), m.segments[-1] if m.segments else {}
    # A loop recorded by `tvlars_probe.record` may have any configuration, or none.
    config, optimizer, schedule = m.config, _part(m.config, "optimizer"), _part(m.config, "schedule")
    data, model, final, bad = m.data or {}, m.model or {}, m.final, m.finding or {}
    epochs = phase.get("epochs", config.get("epochs"))
    return {
        "created": m.created,
        "mode": config.get("mode"),
        "optimizer": group.get("optimizer"),
        "schedule": phase.get("schedule", schedule.get("name")),
        "warmup_epochs": _warmup_epochs(schedule, epochs),
        "peak_lr": phase.get("peak_lr", m.peak_lr),
        "lr": optimizer.get("lr"),
        **{name: getattr(m, name) for name in ("batch_size", "micro_batches", "world_size", "seed", "config_id")},
        **{name: getattr(m, name) for name in ("steps_per_epoch", "total_steps", "best_test_acc1")},
        "weight_decay": group.get("weight_decay"),
        "momentum": (group.get("momentum") or {}).get("beta"),
        "eta": group.get("eta"),
        "lmbda": (group.get("phi") or {}).get("lmbda"),
        "precision": config.get("precision"),
        "data": data.get("name"),
        "train_samples": data.get("train"),
        "classes": data.get("classes"),
        "model": model.get("name"),
        "parameters": model.get("parameters"),
        "epochs": epochs,
        "final_epoch": final.get("epoch"),
        **{f"final_{name}": final.get(name) for name in _FINAL},
        "not_finite_step": bad.get("step"),
        "not_finite_tensor": bad.get("tensor"),
        **{name: segment.get(name) for name in ("host", "device", "torch", "tvlars_probe", "git_revision")},
        "config": json.dumps(in_json(encodable_values(config)), ensure_ascii=False),
    }


def _first(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return entries[0] if entries else {}


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _warmup_epochs(schedule: Mapping[str, Any], epochs: Any) -> float | None:
    """Epochs of warm-up as ``train`` was asked for; its default depends on the length of the phase."""
    if schedule.get("name") != "lars-warm":
        return 0.0 if schedule.get("name") else None
    asked = _typed(schedule.get("warmup_epochs"), "float64")
    length = _typed(epochs, "float64")
    return ScheduleConfig().warmup_for(length) if asked is None and length is not None else asked


def _typed(value: Any, kind: str) -> Any:
    """The value as a column of that type holds it; None where it is of another type: a stranger may have written it."""
    if kind == "name":
        return encodable(value) if isinstance(value, str) else None
    if kind == "time":
        return _utc(value)
    if isinstance(value, bool):
        return None
    if kind == "int64":
        return value if isinstance(value, int) and -(1 << 63) <= value < 1 << 63 else None
    try:
        # Text, too: "inf" and "nan" stand in a manifest's metrics for what JSON lacks.
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _utc(text: Any) -> str | None:
    """A time in UTC as SQL reads it; None where it is none."""
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat(" ")
    except (TypeError, ValueError, OverflowError):
        return None
