"""What an optimizer does to the tensors of one parameter group, in words that a program can read. Needs no torch.

Code that depends on the optimizer asks its `GroupDescription`. The recorder learns from it which columns can be filled,
and the applied rates what multiplied the gradient; the manifest stores all of it, and the analyses read it there.
`tvlars_probe.describe` makes descriptions; see `tvlars_probe.optimizers.description`.

A description is made of the words in `tvlars_probe.optimizers.description_words`. It is either complete or unknown. If
it is complete, the following steps reproduce the optimizer's t-th update (t = 1, 2, ...) of a tensor w of the group,
with gradient g and learning rate lr::

    g  ← g / max(1, ‖all g‖/max_grad_norm)      where the optimizer clips, and −g where it maximizes
    d  = g + λw                                 decay.form "coupled"
    d  = momentum(d)                            momentum.over "gradient"
    d  = d / divisor(v), sign(d) or orth(d)     preconditioner; v is of the d before momentum
    d  = d + λw                                 decay.form "direction"
    d  = q·d                                    scaling
    d  = momentum(d)                            momentum.over "direction"
    w  ← (1 − lr·λ)·w                           decay.form "decoupled"
    w  ← w − lr·d / (1 + (t − 1)·rate_decay)    and / (1 − βᵗ) where momentum.rate_corrected
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tvlars_probe.optimizers.checked import Checked, known_fields
from tvlars_probe.optimizers.description_words import Decay, Momentum, Phi, Preconditioner, Scaling

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    momentum: Momentum = field(default_factory=Momentum)
    decay: Decay = field(default_factory=Decay)
    preconditioner: Preconditioner = field(default_factory=Preconditioner)
    scaling: Scaling = field(default_factory=Scaling)
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

        Muon's matrices and Lion's signs are no factors, and no limit of stability is known of an average that isn't the
        one kept. An optimizer that maximizes follows −H, of which there is no square root of the rates, and one that
        clips by the norm of all gradients doesn't tell the factor.
        """
        is_factor = self.preconditioner.kind not in ("matrix", "sign") and self.momentum.output_beta is None
        return self.is_known and is_factor and not self.maximize and self.max_grad_norm is None

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
