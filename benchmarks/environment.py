"""What a result was measured on."""

import os
import platform
from importlib import import_module
from typing import Any

import click
import numpy as np
import torch


def environment() -> str:
    """One line: interpreter, libraries, processor, threads."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"{platform.machine()} with {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )


def peer(module: str) -> Any:
    """A module of another package, to compare with.

    Raises:
        click.ClickException: it isn't installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} isn't installed: pip install -e '.[bench]'") from None
