"""What a run's marks add up to: shares of hot layers, overwritten tensors, explosions, redundant scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvlars_probe.analyses.verdict import Figure

if TYPE_CHECKING:
    import pandas as pd

    from tvlars_probe.analyses.warmup.early_loss import EarlyLoss
    from tvlars_probe.analyses.warmup.thresholds import Thresholds


@dataclass(frozen=True)
class MarkCounts:
    """What is counted in the tables of layers and explosions.

    Attributes:
        hot_share: share of the adapted layers that are hot in any early step.
        overwritten: number of unadapted tensors that are overwritten in enough early steps to matter.
        unadapted: number of unadapted tensors.
        gradient_share: share of all tensors whose gradient norm explodes early.
        ratio_share: share of all tensors whose ‖w‖/‖g‖ explodes early.
        redundant: share of the held-back cells that are redundant; None where no adapted layer is held back.
        excluded_step: ‖Δw‖/‖w‖ of a step at full rate, median over the unadapted tensors.
        adapted_step: the same over the adapted ones.
    """

    hot_share: float
    overwritten: int
    unadapted: int
    gradient_share: float
    ratio_share: float
    redundant: float | None
    excluded_step: float | None
    adapted_step: float | None

    @classmethod
    def of(cls, layers: pd.DataFrame, explosions: pd.DataFrame, t: Thresholds, last_early: int) -> MarkCounts:
        adapted, rest = layers[layers["adapted"]], layers[~layers["adapted"]]
        # A tensor must be overwritten in more updates than this, so that one recorded step never matters, however short
        # the run, and however many updates the step stands for.
        long_enough = (t.persistent * rest["early_steps"]).clip(lower=rest["longest_span"].clip(lower=1))
        cells = adapted["held_back_steps"].sum()
        soon = explosions[explosions["exploded"] & (explosions["first_step"] <= last_early)]
        count = max(len(layers), 1)
        return cls(
            hot_share=float((adapted["hot_steps"] > 0).mean()) if len(adapted) else 0.0,
            overwritten=int((rest["overwritten_steps"] > long_enough).sum()),
            unadapted=len(rest),
            gradient_share=float((soon["quantity"] == "grad_norm").sum() / count),
            ratio_share=float((soon["quantity"] == "lnr").sum() / count),
            redundant=float(adapted["redundant_steps"].sum() / cells) if cells else None,
            excluded_step=_median(rest["full_rate_step"]),
            adapted_step=_median(adapted["full_rate_step"]),
        )

    @property
    def text(self) -> str:
        """Hot layers and overwritten tensors in words."""
        hot = f"{self.hot_share:.0%} of the adapted layers are hot" if self.hot_share else "no adapted layer is hot"
        if not self.unadapted:
            return hot
        if not self.overwritten:
            return f"{hot} and no unadapted tensor is overwritten"
        return f"{hot} and {self.overwritten} of {self.unadapted} unadapted tensors are overwritten in single steps"


def _median(values: pd.Series[float]) -> float | None:
    return float(values.median()) if values.notna().any() else None


def figures_of(
    counts: MarkCounts, early: EarlyLoss, warmup_steps: int | None, suggested: int | None
) -> tuple[Figure, ...]:
    """The figures that a verdict on warm-up may rest on, in a fixed order."""
    return (
        Figure("loss_rise", early.rise, "1", "highest early loss over the first one"),
        Figure(
            "redundant_share",
            counts.redundant,
            "share",
            "warm-up steps and adapted layers in which the schedule held back a layer already below its settled ratio",
        ),
        Figure("warmup_steps", warmup_steps, "step", "steps before the learning rate reached its peak"),
        Figure("suggested_steps", suggested, "step", "length that covers hot layers and overwritten tensors"),
        Figure("hot_share", counts.hot_share, "share", "adapted layers whose own early ratio is beyond the hot line"),
        Figure("overwritten", counts.overwritten, "1", "unadapted tensors that a full-rate step overwrites"),
        Figure(
            "unadapted_step",
            counts.excluded_step,
            "1",
            "‖Δw‖/‖w‖ of a full-rate step, median over the unadapted tensors",
        ),
        Figure("adapted_step", counts.adapted_step, "1", "the same for the adapted ones"),
        Figure("lnr_explosions", counts.ratio_share, "share", "tensors whose ‖w‖/‖g‖ explodes early"),
        Figure("gradient_explosions", counts.gradient_share, "share", "tensors whose gradient norm explodes early"),
    )
