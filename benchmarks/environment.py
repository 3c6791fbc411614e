"""What a result was measured on."""

import os
import platform

import numpy as np
import torch


def environment() -> str:
    """One line: interpreter, libraries, processor, threads."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"{platform.machine()} with {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
