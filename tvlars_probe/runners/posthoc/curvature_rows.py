"""The rows that a measurement of a run's curvature adds below its ``sharpness/``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvlars_probe.probes.sharpness import curvature_columns
from tvlars_probe.traces.manifest import Manifest, now
from tvlars_probe.traces.writer import TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

    from tvlars_probe.curvature.results import Density, Sharpness


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on one draw of the state after ``step`` updates, in which phase and precision."""

    step: int
    phase: str
    draw: int
    precision: str
    sharpness: Sharpness


def write(
    run: Path, found: list[Measured], *, measurement_id: str, split: str | None, seed: int, has_draws: bool
) -> None:
    """Append the rows below ``sharpness/``; the tables of the trace stay as they are.

    Args:
        run: the run directory.
        found: what was measured.
        measurement_id: of all rows.
        split: part of the data; None for data that a user's function gave.
        seed: of the first draw.
        has_draws: whether rows name their draw.
    """
    writer = TraceWriter(run / "sharpness", Manifest.load(run).run_id)
    for measured in found:
        sharpness = measured.sharpness
        where = {"step": measured.step, "phase": measured.phase, "split": split}
        columns = curvature_columns(sharpness.measurements, **where)  # type: ignore[arg-type]
        draw = measured.draw if has_draws else None
        if columns:
            columns |= {
                "measurement_id": [measurement_id] * len(columns["step"]),
                "draw": [draw] * len(columns["step"]),
            }
            writer.append("curvature", columns)
        whole = {(operator, "all", "all"): density for operator, density in sharpness.densities.items()}
        blocks = {(operator, layer, "layer"): d for (operator, layer), d in sharpness.layer_densities.items()}
        for (operator, scope, kind), density in (whole | blocks).items():
            about = {
                "operator": operator,
                "scope": scope,
                "scope_kind": kind,
                "samples": sharpness.samples,
                "sample_id": sharpness.sample_id,
                "draw": draw,
                "loss": sharpness.loss,
                "bn_mode": sharpness.bn_mode,
                "seed": seed + measured.draw,
                "precision": measured.precision,
                "engine": "lanczos",  # the only one that gives a density
            }
            writer.append("spectrum", _spectrum(density, where | about | {"measurement_id": measurement_id}))
    writer.flush()


def _spectrum(density: Density, common: dict[str, Any]) -> dict[str, Any]:
    """Rows of the table ``spectrum``, by column: one per point of the density's grid."""
    length, made = len(density.grid), now()
    columns = {name: [value] * length for name, value in common.items() if value is not None}
    return columns | {
        "created_at": [made] * length,
        "grid": density.grid,
        "density": density.density,
        "error": density.standard_error,
        "low": density.low,
        "high": density.high,
        **({} if density.check is None else {"check": [density.check] * length}),
        "sigma": [density.sigma] * length,
    }
