"""MLflow's own limits: names it refuses, names that would become one, and runs that are hard to find again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mlflow.tracking import MlflowClient

from tvlars_probe.errors import UserError
from tvlars_probe.exports.exporter import ExportedRun, StepScalars
from tvlars_probe.exports.mlflow import MlflowExporter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def local_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def exported(
    folder: Path, run_id: str = "r.1", *, config: Any = None, values: Any = None, status: str = "completed"
) -> Any:
    """Export a run of one step; the run that MLflow's client then finds."""
    run = ExportedRun(run_id=run_id, name=run_id, folder=folder, project="p", config=config or {})
    exporter = MlflowExporter()
    exporter.refuse_existing(run)
    exporter.prepare(run)
    exporter.begin(run)
    exporter.scalars(StepScalars(3, values or {"loss/train": 1.0}))
    exporter.end(status)
    with pytest.raises(UserError, match=r"holds .* already"):
        exporter.refuse_existing(run)
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    return next(one for one in runs if one.data.tags["tvlars_probe.export"] == run_id)


def test_a_run_is_found_again_whatever_its_name(tmp_path: Path) -> None:
    names = ["both'and\".1", "100%_x", "100%0x", "back\\slash", "[brackets]", "名前", "plain.123-export"]
    for name in names:
        exported(tmp_path, name)
    client: Any = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert sorted(one.data.tags["tvlars_probe.export"] for one in found) == sorted(names)


def test_settings_whose_names_mlflow_does_not_take_are_all_there(tmp_path: Path) -> None:
    long = "x" * 300
    config = {"a@b": 1, "a#b": 2, "..": 3, "": 4, f"{long}1": 5, f"{long}2": 6}
    params = exported(tmp_path, config=config).data.params
    assert sorted(params.values()) == ["1", "2", "3", "4", "5", "6"]
    assert params["a_b"] == "1"


def test_figures_of_long_or_similar_names_stay_apart(tmp_path: Path) -> None:
    tensor = "blocks." * 60 + "weight"
    values = {f"l2_norm/grad/{tensor}": 1.0, f"l2_norm/param/{tensor}": 2.0, "phi/a@b": 3.0, "phi/a#b": 4.0}
    metrics = exported(tmp_path, values=values).data.metrics
    assert sorted(metrics.values()) == [1.0, 2.0, 3.0, 4.0]
    (grad,) = [name for name, value in metrics.items() if value == 1]
    assert grad.startswith("l2_norm/grad/blocks.")
    assert grad.endswith("blocks.weight")


@pytest.mark.parametrize(
    ("status", "mlflows"),
    [
        ("completed", "FINISHED"), ("diverged", "FINISHED"), ("interrupted", "KILLED"), ("killed", "KILLED"),
        ("failed", "FAILED"), ("running", "RUNNING"),
    ],
)  # fmt: skip
def test_a_run_has_its_status_in_mlflow(status: str, mlflows: str, tmp_path: Path) -> None:
    run = exported(tmp_path, status=status)
    assert (run.info.status, run.data.tags["tvlars_probe.status"]) == (mlflows, status)
