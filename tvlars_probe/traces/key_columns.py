"""The columns that say of which run, step and phase a row is: the tables share them."""

from __future__ import annotations

from tvlars_probe.traces.table_form import Column

RUN = Column("run", "name", "name", "the run's run_id", required=True)
STEP = Column("step", "int64", "step", "index of the optimizer update, from 0", required=True)
PHASE = Column("phase", "name", "name", "train, pretrain or linear")
