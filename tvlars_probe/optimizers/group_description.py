"""What an optimizer does to the tensors of one parameter group, in words that a program can read. Needs no torch.

Code that depends on the optimizer asks its `GroupDescription`. The recorder learns from it which columns can be filled,
and the applied rates what multiplied the gradient; the manifest stores all of it, and the analyses read it there.
`tvlars_probe.describe` makes descriptions; see `tvlars_probe.optimizers.description`.

A description is either complete or unknown. If it is complete, the following steps reproduce the optimizer's t-th
update (t = 1, 2, ...) of a tensor w of the group, with gradient g and learning rate lr::

    g  ← g / max(1, ‖all g‖/max_grad_norm)      where the optimizer clips, and −g where it maximizes
    d  = g + λw                                 decay.form "coupled"
    d  = momentum(d)                            momentum.over "gradient"
    d  = d / divisor(v)                         preconditioner; v is of the d before momentum
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
            √v + eps with v the sum of all d²; "matrix": the direction is made a (nearly) orthogonal matrix (Muon).
        beta: β₂; None where it isn't known.
        eps: added to the root, not under it.
        bias_corrected: v is divided by 1 − β₂ᵗ.
        keeps_maximum: each element of v is replaced by its largest value so far (AMSGrad).
        centered: the squared moving average of d is subtracted from v under the root (RMSprop).
        start: v before the first step.
        second_moment: name of v in the optimizer's state.
        first_moment: name of the moving average of d in the optimizer's state, where ``centered``.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDescription(Checked):
    """One parameter group of one optimizer.

    Attributes:
        optimizer: name of its class.
        module: the module that defines the class.
        is_known: whether the other fields describe the optimizer. If not, nothing is assumed of it, and the columns
            that depend on those fields are null. Only ``norms`` holds all the same: a subclass of ours that steps
            otherwise leaves behind what it has used.
        momentum: how past steps enter a step.
        decay: weight decay.
        preconditioner: what the direction is divided by.
        scaling: the factor on each tensor's rate.
        max_grad_norm: the norm of all gradients together to which the optimizer itself clips them; None if it doesn't.
        maximize: whether the optimizer maximizes, by taking −g for g.
        rate_decay: in the t-th update the rate is divided by 1 + (t − 1)·rate_decay (Adagrad's lr_decay).
        norms: where the recorder finds the norms: in the "last_step" that the optimizer leaves behind, or in the
            weights and the "gradient" just before the step.
        update_norm: how ‖Δw‖ is found: "buffer" is lr·‖m‖, m being `Momentum.buffer`; "direction" is lr·q times the
            divisor; "weights" needs a copy of the weights from before the step.
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

    def __post_init__(self) -> None:
        # Without arguments, super() doesn't find the class that ``slots=True`` makes anew.
        Checked.__post_init__(self)
        if self.scaling.kind == "shape" and self.scaling.shape is None:
            raise ValueError('a Scaling of kind "shape" needs its shape, the name of the formula')
        if self.update_norm == "buffer" and self.momentum.buffer is None:
            raise ValueError('update_norm "buffer" needs momentum.buffer, the name of m in the optimizer\'s state')

    @classmethod
    def unknown(cls, optimizer: str, module: str = "") -> GroupDescription:
        """The description of an optimizer that has no rule, or that these fields can't express."""
        return cls(optimizer=optimizer, module=module, is_known=False)

    def decay_of(self, ndim: int) -> float:
        """λ of a tensor with ``ndim`` dimensions."""
        return self.decay.of(ndim)

    def adapts(self, ndim: int) -> bool | None:
        """Whether a trust ratio scales the rate of a tensor with ``ndim`` dimensions; None where unknown."""
        if not self.is_known:
            return None
        s = self.scaling
        return s.kind == "trust-ratio" and not (
            (s.spares_vectors and ndim <= 1) or (s.spares_undecayed and self.decay_of(ndim) == 0)
        )

    def shape_factor(self, shape: tuple[int, ...]) -> float:
        """q of a tensor of this shape, where `Scaling.kind` is "shape".

        A tensor of more than two dimensions counts as the matrix whose columns are all its dimensions from the second
        on, flattened.
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
        """How the scaled direction is made.

        Optimizers with equal rules scale the same kind of direction: norms recorded with one can replay the other.
        """
        m, p = self.momentum, self.preconditioner
        # Momentum over the scaled direction comes after the ratio, which doesn't depend on it.
        momentum = (m.form, m.lookahead, m.bias_corrected) if m.over == "gradient" else ()
        return (*momentum, p.kind, p.bias_corrected, p.keeps_maximum)

    @property
    def keeps_state(self) -> bool:
        """Whether the optimizer needs state from earlier steps to continue."""
        return self.momentum.form != "none" or self.preconditioner.kind != "none"

    @property
    def stability_limit(self) -> float | None:
        """Effective sharpness beyond which steps on a quadratic diverge; None where the applied rates aren't known.

        Decay that is subtracted beside the gradient lowers it: see `Momentum.stability_limit`.
        """
        return self.momentum.stability_limit if self.has_rates else None

    @property
    def has_rates(self) -> bool:
        """Whether what multiplied a gradient follows from settings, state and trust ratio.

        Muon's matrices are no factors. An optimizer that maximizes follows −H, of which there is no square root of the
        rates, and one that clips by the norm of all gradients doesn't tell the factor.
        """
        return self.is_known and not (
            self.preconditioner.kind == "matrix" or self.maximize or self.max_grad_norm is not None
        )

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the table ``layers`` that only some optimizers fill, as far as this one does."""
        if not self.is_known:
            return frozenset({"trust_ratio", "direction_norm"} if self.norms == "last_step" else ())
        if self.norms == "last_step":  # the optimizer leaves its divisor and its ratio behind
            precondition = {"adam_norm", "weight_adam_dot"} if self.preconditioner.kind != "none" else set()
            phis = {"phi"} if self.scaling.phi is not None else set()
            return frozenset({"trust_ratio", "direction_norm", *precondition, *phis})
        if self.scaling.kind != "trust-ratio":
            return frozenset({"trust_ratio"})
        # ‖w‖, ‖g‖ and ⟨w, g⟩ give the ratio, unless it divides by a preconditioned direction, which nobody measures, or
        # depends on a count of updates, which nobody tells.
        is_given = self.scaling.direction == "gradient" and self.scaling.phi is None
        return frozenset({"trust_ratio", "direction_norm"} if is_given else ())

    def as_dict(self) -> dict[str, Any]:
        """The description as the manifest stores it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GroupDescription:
        """The description that `as_dict` has stored; fields that a later version has added are ignored.

        Raises:
            ValueError: a stored value doesn't fit its field, or the optimizer's name is missing.
            TypeError: the stored φ has no ``lmbda``.
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
