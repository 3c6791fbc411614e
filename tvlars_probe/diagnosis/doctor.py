"""`doctor` tries an optimizer on small tensors, and says what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tvlars_probe.diagnosis import contract, long_run, paths
from tvlars_probe.diagnosis.fitting import fitted
from tvlars_probe.diagnosis.measured import described, description_holds
from tvlars_probe.diagnosis.results import Check, Diagnosis, Observed, joined
from tvlars_probe.diagnosis.subject import HORIZON, NotTriedError, subject_of, told
from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvlars_probe.diagnosis.subject import TriedOptimizer

FEWEST_STEPS = 10

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Experiment:
    """A check before it is made; its fields are those of `Check`."""

    name: str
    tried: str
    expected: str
    remedy: str
    observe: Callable[[TriedOptimizer, torch.dtype], Observed]


EXPERIMENTS = (
    Experiment(
        "steps_made",
        "plain steps on a matrix, a kernel, a vector and a scalar",
        "none raises, and each tensor is moved",
        "let step() update every tensor that has a gradient, of whatever shape, and refuse what it doesn't take by a "
        "ValueError that says so",
        contract.steps_made,
    ),
    Experiment(
        "goes_down",
        "20 steps under a gradient that never changes, at right angles to the weights",
        "weights go against the gradient",
        "subtract what follows the gradient: w - lr*g falls, w + lr*g rises",
        contract.goes_down,
    ),
    Experiment(
        "gradient_kept",
        "steps, and each gradient compared with what it was",
        "p.grad is the same before and after step()",
        "write into tensors of the optimizer's own, or clone the gradient first: who accumulates, logs or clips after "
        "the step reads what stands in p.grad",
        contract.gradient_kept,
    ),
    Experiment(
        "first_step",
        "100 steps under a gradient that never changes",
        "first updates follow the rule of the later ones",
        "let the momentum buffer begin at zero, or at what is added to it in every step: the gradient after scaling",
        long_run.first_step,
    ),
    Experiment(
        "state_saved",
        "state_dict() saved, loaded into a new optimizer, and five more steps",
        "both go on with the same bits",
        "keep counters and buffers in self.state or in the parameter groups: attributes aren't saved",
        contract.state_saved,
    ),
    Experiment(
        "factor_alive",
        "many steps under gradients that come again",
        "updates stay finite and don't fade to nothing",
        "compute exponentials in double precision with their argument bounded, or give the factor a lower bound "
        "(TVLARS: gamma_min above 0, or a smaller lmbda)",
        long_run.factor_alive,
    ),
    Experiment(
        "lr_of_group",
        "two groups, one with twice the lr, given at once or set later",
        "each group follows its own lr",
        'read group["lr"] of the tensor\'s own group in every step',
        contract.rate_of_group,
    ),
    Experiment(
        "decay_of_group",
        "two groups, one with another weight_decay, given at once or set later",
        "each group follows its own weight_decay",
        'read group["weight_decay"] of the tensor\'s own group in every step',
        contract.decay_of_group,
    ),
    Experiment(
        "excluded_held",
        "a matrix, a vector of equal norms, and an equal matrix without decay",
        "neither moves ten times as far as the matrix, and each moves",
        "give what the trust ratio leaves out a group with a rate of its own, or let it adapt them, too",
        long_run.excluded_held,
    ),
    Experiment(
        "kernels_agree",
        "foreach and fused against the loop",
        "the same updates, up to rounding",
        "use foreach=False, or make its kernels do what the loop does",
        paths.kernels_agree,
    ),
    Experiment(
        "zero_norms",
        "weights of zero, gradients of zero, and both",
        "updates are finite",
        "use a ratio of 1 where a norm is zero, or add eps to what is divided by",
        contract.zero_norms,
    ),
    Experiment(
        "none_gradients",
        "a tensor whose gradient is None among others",
        "it is left alone, and the others are updated as without it",
        "pass over parameters with p.grad is None",
        contract.none_gradients,
    ),
    Experiment(
        "dtensors_agree",
        "DTensors on a mesh of one rank",
        "the same updates as of plain tensors",
        "let norms be those of whole tensors, and state be sharded as the parameter is",
        paths.dtensors_agree,
    ),
    Experiment(
        "description_holds",
        "what tvlars_probe.describe says against updates of one matrix",
        "momentum and trust ratio are as described",
        "register a true description: tvlars_probe.describe.register(cls)",
        description_holds,
    ),
)


def doctor(optimizer: Any, settings: Mapping[str, Any] | None = None, *, steps: int = HORIZON) -> Diagnosis:
    """Try an optimizer on small tensors, in float64 and in float32, and say what it is and what is wrong with it.

    Args:
        optimizer: an optimizer, whose class and settings are tried and which is left as it is; a class; or a function
            that makes an optimizer of parameters: ``lambda params: Mine(params, lr=0.1)``.
        settings: arguments of the constructor, where a class is given; ``lr`` is 0.1 where the class has no default.
        steps: how many steps a factor has in which to die or to overflow.

    Returns:
        one entry for each thing that was tried. What can't be tried with the class is "not applicable": all of it for
        a class whose step needs a closure (LBFGS) or sparse gradients (SparseAdam), which ``untried`` says once.

    Raises:
        UserError: it is no optimizer, or it can't be made; or ``steps`` are too few.
    """
    if steps < FEWEST_STEPS:
        raise UserError(f"steps {steps} are too few for a factor to die in (allowed: {FEWEST_STEPS} or more)")
    # Strangers' constructors and steps may draw random numbers; the caller's generator stays where it was.
    with torch.random.fork_rng(devices=()):
        subject = replace(fitted(subject_of(optimizer, settings)), horizon=steps)
        checks = tuple(_made(one, subject) for one in EXPERIMENTS)
        lines = described(subject)
    return Diagnosis(subject=subject.name, description=lines, checks=checks, untried=subject.refusal)


def _made(experiment: Experiment, subject: TriedOptimizer) -> Check:
    observed = joined([(label, _observed(experiment, subject, dtype)) for label, dtype in PRECISIONS.items()])
    return Check(
        name=experiment.name,
        tried=experiment.tried,
        expected=experiment.expected,
        came=observed.came,
        answer=observed.answer,
        remedy=experiment.remedy if observed.answer == "wrong" else "",
    )


def _observed(experiment: Experiment, subject: TriedOptimizer, dtype: torch.dtype) -> Observed:
    try:
        return experiment.observe(subject, dtype)
    except NotTriedError as error:
        return Observed("not applicable", str(error))
    except Exception as error:  # a stranger's class may raise anything; that isn't what was asked
        return Observed("can't tell", f"the experiment ended with {told(error)}")
