"""How the Hessian is measured in training."""

from __future__ import annotations

from dataclasses import dataclass

from tvlars_probe.curvature.measures import IN_TRAINING
from tvlars_probe.curvature.results import BN_MODES, OPERATORS
from tvlars_probe.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class SharpnessConfig:
    """How the Hessian is measured in training. None of it changes the run's numbers.

    Attributes:
        every: steps between measurements, "log" (each of the first ten steps, then ten in each decade), or None.
        operators: operators to measure, among "hessian", "effective", "relative", "ggn" and "adaptive".
        measures: among "eigenvalue", "batch", "directional" and "critical"; see `tvlars_probe.SharpnessProbe`.
        samples: training samples of the fixed probe batch; all of them where there are fewer.
        bn_mode: BatchNorm while measuring: "train", "eval" or "frozen-batch"; see `tvlars_probe.curvature.batch_norm`.
        tol: relative error of the eigenvalue.
        budget: highest share of the run's time that all probes may take together, such as "10%"; None sets no limit.
    """

    every: str | None = None
    operators: tuple[str, ...] = ("hessian", "effective", "relative", "adaptive")
    measures: tuple[str, ...] = ("eigenvalue",)
    samples: int = 256
    bn_mode: str = "train"
    tol: float = 1e-3
    budget: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every != "log" and not (self.every.isdecimal() and int(self.every) > 0):
            raise UserError(f"--sharpness-every {self.every}: give a number of steps, 1 or more, or 'log'")
        for name in self.operators:
            if name not in OPERATORS:
                raise unknown("--sharpness-operators", name, OPERATORS)
        if not self.measures:
            raise UserError(f"--sharpness-measures names none (allowed: {', '.join(IN_TRAINING)})")
        for name in self.measures:
            if name not in IN_TRAINING:
                raise unknown("--sharpness-measures", name, IN_TRAINING)
        if self.every is None and self.measures != ("eigenvalue",):
            raise UserError(
                f"--sharpness-measures {' '.join(self.measures)} without --sharpness-every measures nothing: give a "
                "number of steps, or 'log', too"
            )
        if self.samples < 1:
            raise UserError(f"--sharpness-samples {self.samples} is too few (allowed: 1 or more)")
        if self.bn_mode not in BN_MODES:
            raise unknown("--sharpness-bn", self.bn_mode, BN_MODES)
        if not self.tol > 0:
            raise UserError(f"--sharpness-tol {self.tol:g} is too small (allowed: above 0)")
        self.share  # noqa: B018 (refuses a budget that is none)

    @property
    def share(self) -> float | None:
        """The budget as a number above 0 and at most 1; None without a budget.

        Raises:
            UserError: the budget is no such share.
        """
        if self.budget is None:
            return None
        text = self.budget.strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise UserError(f"--probe-budget {self.budget}: give a share of the run's time, such as 10% (up to 100%)")
        return share
