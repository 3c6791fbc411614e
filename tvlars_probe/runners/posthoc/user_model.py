"""The model, loss and data of a run that ``train`` didn't make, from a function of the user's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tvlars_probe.errors import UserError

LossFunction = Callable[[Tensor, Tensor], Tensor]
Weights = Callable[[tuple[Tensor, ...]], float | Tensor]


def made_by(
    target: str, config: dict[str, Any]
) -> tuple[nn.Module, LossFunction, tuple[Tensor, Tensor], Weights | None]:
    """Call a user's function with the run's configuration.

    Args:
        target: ``package.module:function``.
        config: the configuration in the manifest.

    Returns:
        the model, the loss function of (outputs, targets), the data (inputs, targets), and what a batch counts, or None
        for its number of samples: the function may leave it out.

    Raises:
        UserError: there is no such function, it fails, or it returns something else.
    """
    try:
        made = _import_function(target)(config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--model {target} failed: {type(error).__name__}: {error}") from error
    is_right = isinstance(made, tuple) and len(made) in (3, 4) and isinstance(made[0], nn.Module)
    is_right = is_right and all(callable(function) for function in (made[1], *made[3:]))
    if is_right and isinstance(made[2], tuple | list) and [isinstance(x, Tensor) for x in made[2]] == [True] * 2:
        return made[0], made[1], (made[2][0], made[2][1]), made[3] if len(made) == 4 else None
    raise UserError(
        f"--model {target} must return (model, loss_fn, (inputs, targets)) or, with what a batch counts, (model, "
        f"loss_fn, (inputs, targets), weights), got {type(made).__name__}"
    )


def _import_function(target: str) -> Any:
    """The function that ``package.module:function`` names; modules in the working directory are found, too.

    Raises:
        UserError: there is no such function, or its module can't be imported.
    """
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise UserError(f"--model {target}: write it as package.module:function")
    # Python puts the working directory on the path for "python -m", but not for an installed command.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--model {target} can't be imported: {error}") from None
