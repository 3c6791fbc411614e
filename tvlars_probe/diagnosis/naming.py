"""Optimizers by name: ``MODULE:CLASS``, and settings as words."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvlars_probe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


def class_named(name: str) -> Any:
    """What ``MODULE:CLASS`` or ``MODULE.CLASS`` names; modules of the working directory are found, too.

    Raises:
        UserError: there is no such module, or it has no such class, or what it has can't step and can't be called.
    """
    module, colon, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not (module and colon and attribute):
        raise UserError(
            f"{name} is neither a run nor an optimizer: give a run's folder, or MODULE:CLASS (torch.optim:SGD)"
        )
    if module.endswith(".py"):
        raise UserError(
            f"{module} is a file: give its module, {Path(module).stem}:{attribute}, from the folder that holds it"
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {module}: install its package, or call this from the folder that holds it"
            ) from None
        raise UserError(f"{module} can't be imported: {error}") from None
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything, and a script may end itself
        raise UserError(f"{module} can't be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(here)
    if not hasattr(found, attribute):
        raise UserError(f"{module} has no {attribute} (its classes: {_classes(found)})")
    named = getattr(found, attribute)
    if not callable(named) and not hasattr(named, "step"):
        raise UserError(
            f"{name} is no optimizer, but a value of type {type(named).__name__} (classes of {module}: "
            f"{_classes(found)})"
        )
    return named


def _classes(module: Any) -> str:
    """The first classes of a module that can step."""
    names = [name for name, kind in vars(module).items() if isinstance(kind, type) and hasattr(kind, "step")]
    return ", ".join(sorted(names)[:20]) or "none that can step"


def settings_told(words: Sequence[str]) -> dict[str, Any]:
    """Settings from words such as ``lr=0.1`` and ``betas=(0.9,0.99)``; what is no Python value is a text.

    Raises:
        UserError: a word has no name, or no ``=``.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            raise UserError(f"--set {word} isn't NAME=VALUE: give a setting such as --set lr=0.1")
        settings[name] = _value(text)
    return settings


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
