"""The extra ``train``: the packages that only training and curvature need, and what is said where one is missing."""

from __future__ import annotations

from tvlars_probe.errors import MissingExtraError

TRAIN = ("torch", "torchvision", "sklearn", "pyhessian", "PIL")
"""Names by which its packages are imported."""


def require_torch() -> None:
    """Miss torch now, without importing it, where an import would miss it too late.

    Raises:
        ModuleNotFoundError: it isn't installed; the command line tells that by `missing_extra`.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


def missing_extra(what: str, error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error to raise instead of ``error``; None where no package of the extra is missing.

    Args:
        what: what can't be done without the package.
        error: what an import raised.
    """
    package = (error.name or "").partition(".")[0]
    if package not in TRAIN:
        return None
    return MissingExtraError(f"{what} needs {package}: pip install 'tvlars-probe[train]'")
