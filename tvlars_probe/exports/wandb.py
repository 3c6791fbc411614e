"""Exports to Weights & Biases: offline, unless the user's own environment says otherwise (WANDB_MODE)."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import wandb

from tvlars_probe.exports.exporter import refuse_folder

if TYPE_CHECKING:
    from tvlars_probe.exports.exporter import Alert, ExportedRun, StepScalars


class WandbExporter:
    """Writes a run of W&B with the trace's steps, findings as alerts and in the summary."""

    def refuse_existing(self, run: ExportedRun) -> None:
        refuse_folder(run.folder)

    def begin(self, run: ExportedRun) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._findings: list[str] = []
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.project),
            id=re.sub(r"[^\w.-]", "-", run.run_id, flags=re.ASCII)[-64:],
            name=run.name,
            dir=str(run.folder),
            mode=mode,
            resume="allow",
            reinit="create_new",  # a run that the user's own script has begun goes on beside it
            config={**run.config, "tvlars_probe": dict(run.tags)},
            # Of the machine and the terminal nothing is taken: a trace's figures alone are sent.
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_disable_stats=True
            ),
        )

    def scalars(self, point: StepScalars) -> None:
        when = {} if point.time is None else {"_timestamp": point.time}
        self._run.log({**point.values, **when}, step=point.step)

    def alert(self, alert: Alert) -> None:
        self._run.alert(title=f"{alert.rule}, step {alert.step}", text=alert.text, level=wandb.AlertLevel.WARN)
        self._findings.append(f"step {alert.step}: {alert.rule}: {alert.text}")
        self._run.summary["findings"] = self._findings

    def flush(self) -> None:
        """W&B's own service writes."""

    def note(self, text: str) -> None:
        self._run.summary["export"] = text

    def end(self, status: str) -> None:
        self._run.summary["status"] = status
        # One that still trains was exported whole, as far as it has come.
        self._run.finish(exit_code=0 if status in ("completed", "diverged", "running") else 1)
