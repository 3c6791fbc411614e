"""What is said of products that aren't the Hessian's, or weren't cross-checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.utils.parametrize import is_parametrized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

ASYMMETRIC = "asymmetric"
"""The check's outcome where ⟨u, A v⟩ and ⟨A u, v⟩ differ beyond rounding."""

AGREES = "agrees"
"""The check's outcome where both routes give the same product, to rounding."""

DIFFERS = "differs"
"""The check's outcome where they don't."""

UNCHECKED = "not cross-checked"
"""The check's outcome where there is no second route; the custom functions in the loss's graph follow."""


def unchecked(custom_functions: Sequence[str]) -> str:
    """The outcome of a check that couldn't be made, with the names of the functions that torch didn't write."""
    return f"{UNCHECKED}: {', '.join(custom_functions)}" if custom_functions else UNCHECKED


def of_functions(custom_functions: Sequence[str]) -> str | None:
    """The outcome where no check is made: None if torch wrote all of the graph's functions."""
    return unchecked(custom_functions) if custom_functions else None


def of_asymmetry(model: nn.Module, share: float, what: str) -> str:
    """A sentence on asymmetric products, with their cause where it is known, and the remedy.

    Args:
        model: the model, which may hold the cause.
        share: the asymmetry as a share of the largest value found.
        what: name of the operator.
    """
    text = f"{what}: its products aren't symmetric (off by {share:.2g} of the largest value), so nothing has converged"
    # The parametrization has modules of its own; the older form leaves weight_g and weight_v in the layer.
    if any(is_parametrized(module) or hasattr(module, "weight_g") for module in model.modules()):
        return (
            f"{text}. torch's second derivative of weight_norm isn't symmetric: fold parametrizations into the weights "
            "first, by torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        )
    return (
        f"{text}. A backward pass of its own, a loss that changes from call to call, or digits lost in "
        "float32 can do this: try float64"
    )


def of_disagreement(custom_functions: Sequence[str], what: str) -> str:
    """A sentence on products that forward over reverse doesn't confirm."""
    functions = f" (its graph holds {', '.join(custom_functions)})" if custom_functions else ""
    return (
        f"{what}: double backward and forward over reverse give different products{functions}, so that no figure has "
        "converged: try float64; a custom function needs a right second derivative"
    )
