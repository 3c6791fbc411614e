"""The device, and a skip for all where there is none."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("TVLARS_DEVICE", "cuda"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip every check where the device is CUDA's and there is none."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        for item in items:
            if item.path.parent.name == "gpu":
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device() -> torch.device:
    """Where the checks compute."""
    return DEVICE


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for what CUDA alone has."""
    if device.type != "cuda":
        pytest.skip("CUDA alone has it")
    return device
