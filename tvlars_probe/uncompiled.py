"""Functions that `torch.compile` leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from torch._compile import _disable_dynamo

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

Function = TypeVar("Function", bound="Callable[..., Any]")


def uncompiled(function: Function) -> Function:
    """Keep `torch.compile` out of a function, and out of what it calls: compiled code calls it as it is.

    What is read between two kernels, with numbers on the host, would be traced at the price of minutes, and rounded
    otherwise.
    """
    # Not `torch.compiler.disable`, which imports the compiler: this does so at the first call, and torch's optimizers,
    # which use it themselves, have done it by then.
    return cast("Function", _disable_dynamo(function))
