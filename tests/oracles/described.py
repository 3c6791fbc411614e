"""An optimizer made of nothing but its description: what the words of a `GroupDescription` say, in float64.

Written from the docstrings of `tvlars_probe.optimizers.description_words` and `group_description` alone: it shares no
arithmetic with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvlars_probe import GroupDescription

Array = NDArray[np.float64]


@dataclass
class DescribedTensor:
    """A tensor that is updated as a description says.

    Attributes:
        w: its value.
        group: the description.
        orthogonal: what makes a matrix orthogonal, where the description says that something does.
    """

    w: Array
    group: GroupDescription
    orthogonal: Callable[[Array], Array] | None = None
    t: int = 0
    memory: dict[str, Array] = field(default_factory=dict)

    def step(self, g: Array, lr: float) -> None:
        """Make one update by the gradient ``g``, already clipped."""
        d, w = self.group, self.w
        self.t += 1
        u = -g if d.maximize else g
        decay = self._decay()
        x = u + decay * w if d.decay.form == "coupled" else u
        raw = x
        if d.momentum.over == "gradient":
            x = self._momentum(x)
        x = self._preconditioned(x, raw)
        scaled = x if d.scaling.direction == "preconditioned" else u
        if d.decay.form == "direction":
            x = x + decay * w
        x = self._factor(scaled, decay, lr) * x
        if d.momentum.over == "direction":
            x = self._momentum(x)
        if d.decay.form == "decoupled":
            w = (1 - lr * decay) * w
        lr = lr / (1 - d.momentum.beta**self.t) if d.momentum.rate_corrected else lr
        self.w = w - lr * x / (1 + (self.t - 1) * d.rate_decay)

    def _decay(self) -> float:
        decay = self.group.decay
        spared = decay.spares_vectors and self.w.ndim <= 1
        return 0.0 if spared or decay.form == "none" else decay.value

    def _momentum(self, u: Array) -> Array:
        m = self.group.momentum
        if m.form == "none":
            return u
        before = self.memory.get("m", np.zeros_like(u))
        if m.form == "moving-average":
            kept = m.beta * before + (1 - m.beta) * u
            out = m.beta * kept + (1 - m.beta) * u if m.lookahead else kept
            if m.output_beta is not None:
                out = m.output_beta * before + (1 - m.output_beta) * u
        else:
            whole = m.starts_whole and self.t == 1
            kept = u if whole else m.beta * before + (1 - m.dampening) * u
            out = u + m.beta * kept if m.form == "nesterov" else kept
        self.memory["m"] = kept
        return out / (1 - m.beta**self.t) if m.bias_corrected else out

    def _preconditioned(self, x: Array, raw: Array) -> Array:
        p = self.group.preconditioner
        if p.kind == "none":
            return x
        if p.kind == "sign":
            return np.sign(x)
        if p.kind == "matrix":
            assert self.orthogonal is not None
            return self.orthogonal(x)
        square = np.full_like(raw, np.sum(raw**2)) if p.kind == "norm" else raw**2
        v = self.memory.get("v", np.full_like(raw, p.start))
        if p.kind == "adagrad":
            v = v + square
        else:
            assert p.beta is not None
            whole = {"never": False, "first": self.t == 1, "zero": not np.any(v)}[p.whole]
            v = square if whole else p.beta * v + (1 - p.beta) * square
        self.memory["v"] = v
        if p.centered:
            assert p.beta is not None
            mean = p.beta * self.memory.get("mean", np.zeros_like(raw)) + (1 - p.beta) * raw
            self.memory["mean"] = mean
            v = v - mean**2
        if p.keeps_maximum:
            v = self.memory["vmax"] = np.maximum(self.memory.get("vmax", np.zeros_like(v)), v)
        if p.bias_corrected:
            assert p.beta is not None
            v = v / (1 - p.beta**self.t)
        return x / (np.sqrt(v) + p.eps)

    def _factor(self, u: Array, decay: float, lr: float) -> float:
        s = self.group.scaling
        if s.kind == "shape":
            a, b = self.w.shape[0], self.w.size // self.w.shape[0]
            shapes = {"original": math.sqrt(max(1, a / b)), "match_rms_adamw": 0.2 * math.sqrt(max(a, b))}
            return {**shapes, "spectral_unclamped": math.sqrt(a / b)}[str(s.shape)]
        spared = (s.spares_vectors and self.w.ndim <= 1) or (s.spares_undecayed and decay == 0)
        if s.kind == "none" or spared:
            return 1.0
        weights, direction = np.linalg.norm(self.w), np.linalg.norm(u)
        divisors = {"decayed": np.linalg.norm(u + decay * self.w), "sum": direction + decay * weights}
        divisor = float({**divisors, "grad": direction}[s.divisor]) + s.eps
        idle = weights == 0 or (divisor == 0 if s.idle_without == "divisor" else direction == 0)
        if idle:
            return self._clipped(1.0, lr) if s.idle_without == "gradient" else 1.0
        phi = 1.0
        if (p := s.phi) is not None:
            phi = 1 / (p.alpha + math.exp(p.lmbda * (self.t - p.delay))) + p.gamma_min
        above = min(float(weights), math.inf if s.weight_cap is None else s.weight_cap)
        below = min(divisor, math.inf if s.divisor_cap is None else s.divisor_cap)
        return self._clipped(s.eta * phi * above / below, lr)

    def _clipped(self, q: float, lr: float) -> float:
        clip = self.group.scaling.clip
        if clip == "rate":
            return min(q / lr, 1.0) if lr > 0 else 1.0
        return min(q, 1.0) if clip == "one" else q


def clipped(grads: Sequence[Array], groups: Sequence[GroupDescription]) -> list[Array]:
    """The gradients of all groups as the optimizer itself scales them, where it does."""
    limits = {group.max_grad_norm for group in groups} - {None}
    if not limits:
        return list(grads)
    (limit,) = limits
    assert limit is not None
    whole = math.sqrt(sum(float(np.sum(g**2)) for g in grads))
    return [g / max(1.0, whole / limit) for g in grads]
