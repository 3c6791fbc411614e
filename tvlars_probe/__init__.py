"""Instrumented large-batch training.

The names below are the public API. Each is loaded on first use, and importing the package doesn't import torch:
reading a trace and answering ``--help`` don't need it. What needs it says so where it isn't installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tvlars_probe.extras import missing_extra

if TYPE_CHECKING:
    from tvlars_probe.curvature.results import Sharpness
    from tvlars_probe.curvature.sharpness import sharpness
    from tvlars_probe.diagnosis.doctor import doctor
    from tvlars_probe.diagnosis.results import Diagnosis
    from tvlars_probe.exports.settings import Export
    from tvlars_probe.findings.finding import Finding
    from tvlars_probe.noise.gradient_noise import gradient_noise
    from tvlars_probe.noise.results import GradientNoise
    from tvlars_probe.optimizers.description import describe
    from tvlars_probe.optimizers.description_words import Decay, Momentum, Phi, Preconditioner, Scaling
    from tvlars_probe.optimizers.group_description import GroupDescription
    from tvlars_probe.optimizers.lamb import LAMB
    from tvlars_probe.optimizers.lars import LARS
    from tvlars_probe.optimizers.nlamb import NLAMB
    from tvlars_probe.optimizers.tvlars import TVLARS
    from tvlars_probe.probes.noise import NoiseProbe
    from tvlars_probe.probes.readers.rates import applied_rates
    from tvlars_probe.probes.record import record
    from tvlars_probe.probes.recorder import Recorder
    from tvlars_probe.probes.sharpness import SharpnessProbe
    from tvlars_probe.queries.asking import query
    from tvlars_probe.runs import Run, Runs, compare, open_run, open_runs

__version__ = "0.1.0"

# The module that defines each public name. Type checkers can't read it: they take the imports above.
_HOMES = {
    "describe": "tvlars_probe.optimizers.description",
    **dict.fromkeys(
        ("Decay", "Momentum", "Phi", "Preconditioner", "Scaling"), "tvlars_probe.optimizers.description_words"
    ),
    "doctor": "tvlars_probe.diagnosis.doctor",
    "Diagnosis": "tvlars_probe.diagnosis.results",
    "Finding": "tvlars_probe.findings.finding",
    "Export": "tvlars_probe.exports.settings",
    "GradientNoise": "tvlars_probe.noise.results",
    "gradient_noise": "tvlars_probe.noise.gradient_noise",
    "GroupDescription": "tvlars_probe.optimizers.group_description",
    "LAMB": "tvlars_probe.optimizers.lamb",
    "LARS": "tvlars_probe.optimizers.lars",
    "NLAMB": "tvlars_probe.optimizers.nlamb",
    "TVLARS": "tvlars_probe.optimizers.tvlars",
    "NoiseProbe": "tvlars_probe.probes.noise",
    "Recorder": "tvlars_probe.probes.recorder",
    "record": "tvlars_probe.probes.record",
    "Sharpness": "tvlars_probe.curvature.results",
    "SharpnessProbe": "tvlars_probe.probes.sharpness",
    "applied_rates": "tvlars_probe.probes.readers.rates",
    "sharpness": "tvlars_probe.curvature.sharpness",
    "query": "tvlars_probe.queries.asking",
    **dict.fromkeys(("Run", "Runs", "compare", "open_run", "open_runs"), "tvlars_probe.runs"),
}

__all__ = [
    "LAMB",
    "LARS",
    "NLAMB",
    "TVLARS",
    "Decay",
    "Diagnosis",
    "Export",
    "Finding",
    "GradientNoise",
    "GroupDescription",
    "Momentum",
    "NoiseProbe",
    "Phi",
    "Preconditioner",
    "Recorder",
    "Run",
    "Runs",
    "Scaling",
    "Sharpness",
    "SharpnessProbe",
    "applied_rates",
    "compare",
    "describe",
    "doctor",
    "gradient_noise",
    "open_run",
    "open_runs",
    "query",
    "record",
    "sharpness",
]


# Python calls this for a name that the module's namespace lacks (PEP 562).
def __getattr__(name: str) -> Any:
    if name == "integrations":  # a package of names, loaded like them
        return import_module("tvlars_probe.integrations")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(f"tvlars_probe.{name}", error)) is None:
            raise
        raise missing from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "integrations"})
