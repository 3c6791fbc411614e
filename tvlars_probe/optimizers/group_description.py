"""What an optimizer does to the tensors of one parameter group, in words that a program can read. Needs no torch.

Everything that must know an optimizer asks a `GroupDescription`: the recorder (which columns can be filled), the
applied rates (what multiplied the gradient), the manifest (which keeps it whole) and the analyses (which find it
there). `tvlars_probe.describe` makes them; see `tvlars_probe.optimizers.description`.

A description is complete or it is unknown. Complete means that these steps reproduce the update of a tensor w of the
group, with gradient g, rate lr, in the optimizer's t-th update::

    g  ← g / max(1, ‖all g‖/max_grad_norm)      where the optimizer clips, and −g where it maximizes
    d  = g + λw                                 decay.form "coupled"
    d  = momentum(d)                            momentum.over "gradient"
    d  = d / divisor(v)                         preconditioner; v is kept of the d before momentum
    d  = d + λw                                 decay.form "direction"
    d  = q·d                                    scaling
    d  = momentum(d)                            momentum.over "direction"
    w  ← (1 − lr·λ)·w                           decay.form "decoupled"
    w  ← w − lr·d / (1 + (t − 1)·rate_decay)    and / (1 − βᵗ) where momentum.rate_corrected
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tvlars_probe.optimizers.checked import Checked, known_fields
from tvlars_probe.optimizers.phi import phi

if TYPE_CHECKING:
    from collections.abc import Mapping

NORM_CAP = 10.0
"""Where the official TVLARS clamps ‖w‖ and its denominator, and the official LAMB ‖w‖."""

Denominator = Literal["decayed", "sum", "grad"]
Exclusion = Literal["ndim", "undecayed"]
DENOMINATORS: tuple[str, ...] = get_args(Denominator)
EXCLUSIONS: tuple[str, ...] = get_args(Exclusion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum(Checked):
    """How the directions u of past steps enter a step.

    Attributes:
        form: "none"; "heavy-ball": m ← β·m + (1 − dampening)·u, and m is the direction; "nesterov": the same m, and
            u + β·m is; "moving-average": m ← β·m + (1 − β)·u, and m is.
        beta: β.
        dampening: of heavy-ball and nesterov; a moving average's own is β (`damping`).
        over: what is averaged: the "gradient", or the "direction" that comes of preconditioning and scaling.
        lookahead: a moving average in Nesterov's form: (1 − β)·u + β·m is the direction.
        bias_corrected: the direction is divided by 1 − βᵗ.
        rate_corrected: the rate is, so that no scaling of the direction cancels it (pytorch_optimizer's Lamb).
        starts_whole: the first m is u, without dampening (torch's SGD).
        buffer: name of m in the optimizer's state, where a `GroupDescription.update_norm` is read from it.
    """

    form: Literal["none", "heavy-ball", "nesterov", "moving-average"] = "none"
    beta: float = 0.0
    dampening: float = 0.0
    over: Literal["gradient", "direction"] = "direction"
    lookahead: bool = False
    bias_corrected: bool = False
    rate_corrected: bool = False
    starts_whole: bool = False
    buffer: str | None = None

    @property
    def damping(self) -> float:
        """Share of u that does not enter m. A moving average is heavy-ball momentum with dampening β."""
        return self.beta if self.form == "moving-average" else self.dampening

    @property
    def stability_limit(self) -> float:
        """Curvature times rate beyond which a quadratic diverges, the rate being lr·(1 − `damping`).

        2(1 + β) for heavy-ball momentum β, 2(1 + β)/(1 + 2β) with Nesterov (Cohen et al. 2021, arXiv:2103.00065,
        appendix B).
        """
        is_nesterov = self.form == "nesterov" or self.lookahead
        return 2 * (1 + self.beta) / (1 + 2 * self.beta) if is_nesterov else 2 * (1 + self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decay(Checked):
    """Weight decay.

    Attributes:
        form: "none"; "coupled": λw is added to the gradient; "direction": to the preconditioned direction, before that
            is scaled (LAMB); "decoupled": lr·λ·w is taken off the weights.
        value: λ.
        spares_vectors: tensors of at most one dimension get none.
    """

    form: Literal["none", "coupled", "direction", "decoupled"] = "none"
    value: float = 0.0
    spares_vectors: bool = False

    def of(self, ndim: int) -> float:
        """λ of a tensor of so many dimensions."""
        return 0.0 if self.form == "none" or (self.spares_vectors and ndim <= 1) else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioner(Checked):
    """What the direction is divided by, element by element, or multiplied by as a matrix.

    Attributes:
        kind: "none"; "adam": √v + eps with v ← β₂·v + (1 − β₂)·d²; "rmsprop": the same v, from which "centered" takes
            the squared average of d; "adagrad": √v + eps with v the sum of all d²; "matrix": the direction is made a
            (nearly) orthogonal matrix (Muon).
        beta: β₂, None where it isn't known.
        eps: added outside the root.
        bias_corrected: v is divided by 1 − β₂ᵗ.
        keeps_maximum: v is the largest so far (AMSGrad).
        centered: see rmsprop.
        start: v before the first step.
        second_moment: name of v in the optimizer's state.
        first_moment: name of the average of d in the optimizer's state, where ``centered``.
    """

    kind: Literal["none", "adam", "rmsprop", "adagrad", "matrix"] = "none"
    beta: float | None = None
    eps: float = 0.0
    bias_corrected: bool = False
    keeps_maximum: bool = False
    centered: bool = False
    start: float = 0.0
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
    """The factor q on a tensor's own rate.

    Attributes:
        kind: "none": q = 1; "trust-ratio": q = eta·φ·min(‖w‖, weight_cap)/min(divisor, divisor_cap); "shape": a factor
            of the tensor's shape alone.
        eta: trust coefficient.
        direction: what u is in the divisor: the "gradient" before decay, or the "preconditioned" direction.
        divisor: "decayed" ‖u + λw‖, "sum" ‖u‖ + λ‖w‖, or "grad" ‖u‖.
        eps: added to the divisor.
        weight_cap: largest ‖w‖ that counts; None for any.
        divisor_cap: largest divisor that counts; None for any.
        clip: q ← min(q/lr, 1) for "rate" (LARC), min(q, 1) for "one" (LAMBC).
        phi: φ, None for 1.
        spares_vectors: q = 1 for tensors of at most one dimension.
        spares_undecayed: q = 1 for tensors that get no weight decay.
        idle_without: q = 1 where ‖w‖ is zero, or where this is: the "divisor", or the "gradient" (timm, which clips
            that 1, too).
        shape: of kind "shape", for a matrix A×B: "original" √max(1, A/B), "match_rms_adamw" 0.2·√max(A, B),
            "spectral_unclamped" √(A/B).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDescription(Checked):
    """One parameter group of one optimizer.

    Attributes:
        optimizer: name of its class.
        module: where that is defined.
        is_known: whether the rest describes it. If not, nothing is assumed of it, and columns that need the rest are
            null.
        momentum: how past directions enter.
        decay: weight decay.
        preconditioner: what the direction is divided by.
        scaling: the factor on each tensor's rate.
        max_grad_norm: the optimizer itself scales all its gradients so that their common norm is at most this.
        maximize: it climbs.
        rate_decay: the rate falls with the number of updates (Adagrad's lr_decay).
        norms: where the recorder finds the norms: in the "last_step" that the optimizer leaves behind, or at the
            "gradient" just before the step.
        update_norm: where ‖Δw‖ can be read without a copy of the weights: "buffer", lr times the norm of
            `Momentum.buffer`; "direction", lr·q times the divisor; "weights": only from the weights before and after.
    """

    optimizer: str
    module: str = ""
    is_known: bool = True
    momentum: Momentum = Momentum()
    decay: Decay = Decay()
    preconditioner: Preconditioner = Preconditioner()
    scaling: Scaling = Scaling()
    max_grad_norm: float | None = None
    maximize: bool = False
    rate_decay: float = 0.0
    norms: Literal["last_step", "gradient"] = "gradient"
    update_norm: Literal["buffer", "direction", "weights"] = "weights"

    @classmethod
    def unknown(cls, optimizer: str, module: str = "") -> GroupDescription:
        """Of an optimizer whose rule these words don't hold, or that nobody has described."""
        return cls(optimizer=optimizer, module=module, is_known=False)

    def decay_of(self, ndim: int) -> float:
        """λ of a tensor of so many dimensions."""
        return self.decay.of(ndim)

    def adapts(self, ndim: int) -> bool | None:
        """Whether the rate of a tensor of so many dimensions is scaled by a trust ratio; None where unknown."""
        if not self.is_known:
            return None
        s = self.scaling
        return s.kind == "trust-ratio" and not (
            (s.spares_vectors and ndim <= 1) or (s.spares_undecayed and self.decay_of(ndim) == 0)
        )

    def shape_factor(self, shape: tuple[int, ...]) -> float:
        """q of a tensor of this shape, where it is a factor of the shape alone.

        A tensor of more than two dimensions counts as the matrix that it is when flattened from the second on.
        """
        rows, columns = shape[0], 1
        for size in shape[1:]:
            columns *= size
        factors: dict[str | None, float] = {
            "original": max(1.0, rows / columns) ** 0.5,
            "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
            "spectral_unclamped": (rows / columns) ** 0.5,
        }
        return factors[self.scaling.shape]

    @property
    def direction_rule(self) -> tuple[object, ...]:
        """How the direction is made that is scaled: alike in two descriptions, one's norms are the other's."""
        m, p = self.momentum, self.preconditioner
        momentum = (m.form, m.lookahead, m.bias_corrected) if m.over == "gradient" else ()
        return (*momentum, p.kind, p.bias_corrected, p.keeps_maximum)

    @property
    def keeps_state(self) -> bool:
        """Whether the optimizer needs what it kept of the steps before to continue."""
        return self.momentum.form != "none" or self.preconditioner.kind != "none"

    @property
    def stability_limit(self) -> float | None:
        """Effective sharpness beyond which a quadratic diverges; None where the rates aren't known that it takes."""
        has_rates = self.is_known and self.preconditioner.kind != "matrix"
        return self.momentum.stability_limit if has_rates else None

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the table ``layers`` that are filled for this optimizer, beside the norms of w and g."""
        if not self.is_known:
            return frozenset()
        if self.norms == "last_step":  # the optimizer leaves its divisor and its ratio behind
            precondition = {"adam_norm", "weight_adam_dot"} if self.preconditioner.kind != "none" else set()
            phis = {"phi"} if self.scaling.phi is not None else set()
            return frozenset({"trust_ratio", "direction_norm", *precondition, *phis})
        if self.scaling.kind != "trust-ratio":
            return frozenset({"trust_ratio"})
        # The ratio follows from the norms of w and g, unless it is of a direction whose norm nobody took.
        return frozenset({"trust_ratio", "direction_norm"} if self.scaling.direction == "gradient" else ())

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GroupDescription:
        """What `as_dict` gave; what a later version has added is passed over.

        Raises:
            ValueError: it is none.
        """
        parts: dict[str, type[Any]] = {
            "momentum": Momentum,
            "decay": Decay,
            "preconditioner": Preconditioner,
            "scaling": Scaling,
        }
        values = known_fields(cls, stored)
        for name, kind in parts.items():
            if name in values:
                part = known_fields(kind, values[name])
                if part.get("phi") is not None:
                    part["phi"] = Phi(**known_fields(Phi, part["phi"]))
                values[name] = kind(**part)
        if "optimizer" not in values:
            raise ValueError("a description lacks the optimizer's name")
        return cls(**values)
