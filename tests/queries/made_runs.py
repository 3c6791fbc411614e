"""Finished runs to be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.live.recording import begin, finding, layers, steps

if TYPE_CHECKING:
    from pathlib import Path


def make_runs(folder: Path) -> Path:
    """Two finished runs below a folder, ``lars`` and ``lamb``, whose tensors have other names in another order."""
    for seed, (name, tensors) in enumerate({"lars": ["stem", "body"], "lamb": ["head", "body", "stem"]}.items()):
        run = begin(
            folder / name,
            seed=seed,
            batch_size=512,
            peak_lr=8.0,
            groups=[{"optimizer": name.upper(), "lr": 0.0, "weight_decay": 0.5}],
        )
        for step in range(6):
            layers(run, step, tensors, trust_ratio=[None, *(0.1 * step + seed for _ in tensors[1:])])
        steps(run, 0, 6, loss=lambda step: float("nan") if step == 5 else 1.0 / (step + 1))
        finding(run, 3)
        for epoch in range(2):
            run.append_epoch(
                {"step": 3 * epoch + 3, "epoch": epoch, "phase": "train", "test_acc1": 40.0 + epoch + seed}
            )
        run.flush(6)
        run.finish("completed")
    return folder
