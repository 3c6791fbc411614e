"""The words of a `GroupDescription`: momentum, decay, preconditioner, and the scaling of each tensor's rate.

Needs no torch. `tvlars_probe.optimizers.group_description` says where each of them enters an update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tvlars_probe.optimizers.checked import Checked
from tvlars_probe.optimizers.phi import phi

NORM_CAP = 10.0
"""The bound at which the official TVLARS clamps ‖w‖ and its denominator, and the official LAMB ‖w‖ alone."""

Denominator = Literal["decayed", "sum", "grad"]
Exclusion = Literal["ndim", "undecayed"]
DENOMINATORS: tuple[str, ...] = get_args(Denominator)
EXCLUSIONS: tuple[str, ...] = get_args(Exclusion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum(Checked):
    """How past steps enter a step: m accumulates each step's input u, and gives the step's output.

    Attributes:
        form: "none": the output is u. "heavy-ball": m ← β·m + (1 − dampening)·u, and the output is m. "nesterov": the
            same m, and the output is u + β·m. "moving-average": m ← β·m + (1 − β)·u, and the output is m.
        beta: β.
        dampening: dampening of heavy-ball and nesterov. A moving average has dampening β by its form: see `damping`.
        over: what u is: the "gradient", or the "direction" that preconditioning and scaling have made of it.
        lookahead: a moving average in Nesterov's form, whose output is (1 − β)·u + β·m.
        output_beta: γ of a moving average whose output is γ·m + (1 − γ)·u with the m from before the step (Lion's β₁,
            where β is its β₂); None where the form gives the output.
        bias_corrected: the output is divided by 1 − βᵗ.
        rate_corrected: the rate is divided by 1 − βᵗ instead. A trust ratio would cancel a factor in the direction; it
            doesn't cancel this one (pytorch_optimizer's Lamb).
        starts_whole: the first m is u, without dampening (torch's SGD).
        buffer: name of m in the optimizer's state, where `GroupDescription.update_norm` is "buffer".
    """

    form: Literal["none", "heavy-ball", "nesterov", "moving-average"] = "none"
    beta: float = 0.0
    dampening: float = 0.0
    over: Literal["gradient", "direction"] = "direction"
    lookahead: bool = False
    output_beta: float | None = None
    bias_corrected: bool = False
    rate_corrected: bool = False
    starts_whole: bool = False
    buffer: str | None = None

    @property
    def damping(self) -> float:
        """Share of u that does not enter m; a moving average is heavy-ball momentum with dampening β."""
        return self.beta if self.form == "moving-average" else self.dampening

    @property
    def stability_limit(self) -> float:
        """The product of curvature and rate beyond which steps on a quadratic diverge; the rate is lr·(1 − `damping`).

        It is 2(1 + β) for heavy-ball momentum and 2(1 + β)(1 − c)/(1 + β(2 − c)) for Nesterov's with dampening c, which
        is 2(1 + β)/(1 + 2β) without (Cohen et al. 2021, arXiv:2103.00065, appendix B); 2 without momentum.

        Where an update also subtracts δ·w from the weights, apart from the momentum, the limit is 1 − δ/2 times that.
        At the limit w and m change sign in each step: heavy-ball momentum, M being lr·m and s the product, then has
        M = s·w/(1 + β), and −w = (1 − δ)·w − M gives s = (2 − δ)(1 + β). The other forms have the same 2 − δ.
        """
        # A moving average is 1 − β times the undamped heavy-ball m, and that factor is in the rate: one formula serves
        # both, also in Nesterov's form.
        c = self.dampening if self.form == "nesterov" else 0.0
        is_nesterov = self.form == "nesterov" or self.lookahead
        heavy_ball = 2 * (1 + self.beta)
        return heavy_ball * (1 - c) / (1 + self.beta * (2 - c)) if is_nesterov else heavy_ball


@dataclass(frozen=True, slots=True, kw_only=True)
class Decay(Checked):
    """Weight decay.

    Attributes:
        form: "none"; "coupled": λw is added to the gradient; "direction": λw is added to the preconditioned direction,
            before scaling (LAMB); "decoupled": lr·λ·w is subtracted from the weights.
        value: λ.
        spares_vectors: tensors of at most one dimension are not decayed.
    """

    form: Literal["none", "coupled", "direction", "decoupled"] = "none"
    value: float = 0.0
    spares_vectors: bool = False

    def of(self, ndim: int) -> float:
        """λ of a tensor with ``ndim`` dimensions."""
        return 0.0 if self.form == "none" or (self.spares_vectors and ndim <= 1) else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioner(Checked):
    """What the direction d is divided by, element by element, or how it is transformed as a matrix.

    Attributes:
        kind: "none"; "adam" and "rmsprop": the divisor is √v + eps with v ← β₂·v + (1 − β₂)·d²; "adagrad": it is
            √v + eps with v the sum of all d²; "norm": it is √v + eps with v ← β₂·v + (1 − β₂)·‖d‖², one number for the
            tensor (NovoGrad); "sign": each element is replaced by its sign, −1, 0 or 1 (Lion); "matrix": the direction
            is made a (nearly) orthogonal matrix (Muon).
        beta: β₂; None where it isn't known.
        eps: added to the root, not under it.
        bias_corrected: v is divided by 1 − β₂ᵗ.
        keeps_maximum: each element of v is replaced by its largest value so far (AMSGrad).
        centered: the squared moving average of d is subtracted from v under the root (RMSprop).
        start: v before the first step.
        whole: when v is d² or ‖d‖² alone instead: "never", "first": in the tensor's first step, "zero": as long as v is
            zero.
        second_moment: name of v in the optimizer's state.
        first_moment: name of the moving average of d in the optimizer's state, where ``centered``.
    """

    kind: Literal["none", "adam", "rmsprop", "adagrad", "norm", "sign", "matrix"] = "none"
    beta: float | None = None
    eps: float = 0.0
    bias_corrected: bool = False
    keeps_maximum: bool = False
    centered: bool = False
    start: float = 0.0
    whole: Literal["never", "first", "zero"] = "never"
    second_moment: str | None = None
    first_moment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi(Checked):
    """TVLARS' factor in time; see `tvlars_probe.optimizers.phi.phi`."""

    lmbda: float
    alpha: float = 0.1
    delay: float = 0.0
    gamma_min: float = 0.0

    def at(self, t: float) -> float:
        """φ of the t-th update, counted from 1."""
        return phi(t, lmbda=self.lmbda, alpha=self.alpha, delay=self.delay, gamma_min=self.gamma_min)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling(Checked):
    """The factor q by which each tensor's rate is scaled.

    Attributes:
        kind: "none": q = 1; "trust-ratio": q = eta·φ·min(‖w‖, weight_cap)/min(divisor, divisor_cap); "shape": q depends
            on the tensor's shape alone.
        eta: trust coefficient.
        direction: what u in the divisor is, before decay: the "gradient", or the "preconditioned" direction.
        divisor: "decayed" is ‖u + λw‖, "sum" is ‖u‖ + λ‖w‖, "grad" is ‖u‖.
        eps: added to the divisor.
        weight_cap: where ‖w‖ is clamped; None for no clamp.
        divisor_cap: where the divisor is clamped; None for no clamp.
        clip: "rate" is q ← min(q/lr, 1) (LARC), "one" is q ← min(q, 1) (LAMBC).
        phi: φ; None for 1.
        spares_vectors: q = 1 for tensors of at most one dimension.
        spares_undecayed: q = 1 for tensors without weight decay.
        idle_without: q = 1 where ‖w‖ is zero, and where the norm named here is zero: that of the "divisor", or that of
            the "gradient" (timm). In the second case the clip applies to this 1, too.
        shape: the formula of kind "shape" for a matrix A×B: "original" is √max(1, A/B), "match_rms_adamw" is
            0.2·√max(A, B), "spectral_unclamped" is √(A/B).
    """

    kind: Literal["none", "trust-ratio", "shape"] = "none"
    eta: float = 1.0
    direction: Literal["gradient", "preconditioned"] = "gradient"
    divisor: Denominator = "decayed"
    eps: float = 0.0
    weight_cap: float | None = None
    divisor_cap: float | None = None
    clip: Literal["none", "rate", "one"] = "none"
    phi: Phi | None = None
    spares_vectors: bool = False
    spares_undecayed: bool = False
    idle_without: Literal["divisor", "gradient"] = "divisor"
    shape: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None
