"""What the probe of gradient noise returns: a frozen record of signal and noise with their errors. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.numbers import check_level
from tvlars_probe.displays.displayed import Displayed, Shown, ShownTable
from tvlars_probe.displays.html import sentence
from tvlars_probe.noise.moments import pieces_needed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseEstimate:
    """One estimate, as a row of the table ``noise`` without the columns that concern a run.

    `tvlars_probe.traces.measurement_tables` defines the columns. ``covariance``, of the estimates of |G|² and tr Σ, is
    none of them: it is for the interval of their quotient.
    """

    source: str = "probe"
    scope: str = "all"
    scope_kind: str = "all"
    pieces: int
    piece_size: float
    unit: str = "samples"
    samples: int
    gradient_square: float
    gradient_square_error: float | None
    noise_trace: float
    noise_trace_error: float | None
    noise_skewness: float | None = None
    heavy_tails: bool | None = None
    top_share: float | None = None
    top_share_error: float | None = None
    top_vectors: int | None = None
    loss: float
    bn_mode: str
    sample_id: str | None = None
    seed: int
    precision: str
    seconds: float
    covariance: float | None

    @property
    def signal_to_noise(self) -> float:
        """|G|²/tr Σ of one sample: 1/signal_to_noise is B_simple. NaN without noise."""
        return self.gradient_square / self.noise_trace if self.noise_trace > 0 else math.nan

    def simple_batch(self, level: float = 0.95) -> SimpleBatch:
        """B_simple = tr Σ/|G|² with its interval at ``level``, by Fieller's theorem; see `SimpleBatch`.

        Raises:
            UserError: the level isn't between 0 and 1.
        """
        from scipy.special import stdtrit

        check_level(level)
        errors = self.noise_trace_error, self.gradient_square_error
        if errors[0] is None or errors[1] is None or self.covariance is None:
            return SimpleBatch(None, 0.0, math.inf)
        quantile = float(stdtrit(self.pieces - 1, (1 + level) / 2))
        found = fieller(
            self.noise_trace,
            self.gradient_square,
            errors[0] ** 2,
            errors[1] ** 2,
            self.covariance,
            quantile,
        )
        return replace(found, heavy_tails=bool(self.heavy_tails))


@dataclass(frozen=True, slots=True)
class SimpleBatch:
    """B_simple = tr Σ/|G|², the batch at which noise and signal of the mean gradient are equal, in samples.

    Attributes:
        value: the quotient of both estimates; None where |G|² can't be told from 0: B_simple is then unknown.
        low: lower end of the interval, 95 % by default; 0 where nothing is known.
        high: upper end; infinite where |G|² can't be told from 0.
        heavy_tails: whether a few samples make so much of the noise that the interval holds the truth less often.
    """

    value: float | None
    low: float
    high: float
    heavy_tails: bool = False

    def __str__(self) -> str:
        doubt = "; doubtful: heavy tails" if self.heavy_tails else ""
        if self.value is None:
            return f"unknown (above {self.low:.3g}{doubt})" if self.low > 0 else "unknown"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g}{doubt})"


def fieller(
    numerator: float, denominator: float, var_n: float, var_d: float, covariance: float, quantile: float
) -> SimpleBatch:
    """The quotient of two estimates with the interval of Fieller (1954, J. R. Stat. Soc. B 16:175).

    All B belong to it for which numerator − B·denominator isn't further from 0 than ``quantile`` of its standard
    errors. Negative B are cut off: neither tr Σ nor |G|² is negative.
    """
    square = quantile**2
    # (n − B d)² <= q²·(var_n − 2 B cov + B² var_d), as c2·B² − 2·c1·B + c0 <= 0.
    c2 = denominator**2 - square * var_d
    c1 = numerator * denominator - square * covariance
    c0 = numerator**2 - square * var_n
    root = math.sqrt(max(c1**2 - c2 * c0, 0.0))
    if not all(map(math.isfinite, (c2, c1, c0))):
        return SimpleBatch(None, 0.0, math.inf)
    if c2 > 0 and denominator > 0:
        return SimpleBatch(numerator / denominator, max((c1 - root) / c2, 0.0), max((c1 + root) / c2, 0.0))
    # The set is the outside of an interval, or everything: of positive B all beyond its greater root.
    low = max((c1 - root) / c2, 0.0) if c2 < 0 and c0 > 0 and c1**2 > c2 * c0 else 0.0
    return SimpleBatch(None, low, math.inf)


@dataclass(frozen=True, kw_only=True, repr=False)
class GradientNoise(Displayed):
    """The gradient's signal and noise in one state.

    Attributes:
        estimates: of the whole model (the first), of each layer, of each tensor.
        left_out: names of parameters that are frozen or on which the loss doesn't depend.
        notes: sentences on how it was measured, where that isn't as asked or as usual.
    """

    estimates: tuple[NoiseEstimate, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Sentences on why the errors of the whole model may be too small; none where they can be trusted."""
        whole = self.whole
        if not whole.heavy_tails or whole.noise_skewness is None:
            return ()
        return (
            f"a few of the {whole.pieces:,} gradients make much of tr Σ (skewness {whole.noise_skewness:.2g}): its "
            f"interval and that of B_simple hold the truth less often than told; it takes "
            f"{pieces_needed(whole.noise_skewness):,} or more",
        )

    def _shown(self) -> Shown:
        whole = self.whole
        heads = {"scope": "of", "gradient_square": "|G|²", "noise_trace": "tr Σ", "pieces": "pieces"}
        return Shown(
            head=f"{whole.samples:,} samples",
            answer=f"|G|² {self.gradient_square:.4g}, tr Σ {self.noise_trace:.4g}",
            lines=(*map(sentence, self.doubts), *self.notes),
            tables=(ShownTable.of_rows([*map(asdict, self.estimates)], heads),),
        )

    @property
    def whole(self) -> NoiseEstimate:
        """The estimate of the whole model."""
        return self.estimates[0]

    @property
    def gradient_square(self) -> float:
        """|G|² of the whole model, unbiased."""
        return self.whole.gradient_square

    @property
    def noise_trace(self) -> float:
        """tr Σ of the whole model, unbiased."""
        return self.whole.noise_trace

    @property
    def loss(self) -> float:
        """Mean loss over the samples."""
        return self.whole.loss

    @property
    def simple_batch(self) -> SimpleBatch:
        """B_simple of the whole model."""
        return self.whole.simple_batch()

    def rows(self) -> list[dict[str, Any]]:
        """The estimates as rows of the table ``noise``, without the columns that concern a run."""
        rows = [asdict(each) for each in self.estimates]
        return [{name: value for name, value in row.items() if name != "covariance"} for row in rows]

    def frame(self) -> pd.DataFrame:
        """The estimates as a pandas frame, whose columns are those of the table ``noise`` but for the run's."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def ratios(self) -> pd.DataFrame:
        """What follows from the estimates, as a frame: a row for each.

        Columns: scope, scope_kind, signal_to_noise (|G|²/tr Σ of one sample), simple_batch (B_simple, NaN where it is
        unknown), the ends low and high of its 95 % interval, and heavy_tails: whether that interval is doubtful.
        """
        import pandas as pd

        rows = []
        for each in self.estimates:
            batch = each.simple_batch()
            value = math.nan if batch.value is None else batch.value
            ends = batch.low, batch.high, batch.heavy_tails
            rows.append((each.scope, each.scope_kind, each.signal_to_noise, value, *ends))
        names = ["scope", "scope_kind", "signal_to_noise", "simple_batch", "low", "high", "heavy_tails"]
        return pd.DataFrame(rows, columns=names)
