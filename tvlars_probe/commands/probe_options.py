"""What is measured in training beside the recording, as options of a command line."""

from __future__ import annotations

from typing import Any

from tvlars_probe.commands.options import Choice, option
from tvlars_probe.curvature.measures import IN_TRAINING
from tvlars_probe.curvature.results import BN_MODES, OPERATORS
from tvlars_probe.runners.configuration.noise import NoiseConfig
from tvlars_probe.runners.configuration.sharpness import SharpnessConfig

PROBE_PARTS: dict[str, tuple[type[Any], dict[str, str]]] = {
    "sharpness": (
        SharpnessConfig,
        {
            "sharpness_every": "every",
            "sharpness_operators": "operators",
            "sharpness_measures": "measures",
            "sharpness_samples": "samples",
            "sharpness_bn": "bn_mode",
            "sharpness_tol": "tol",
            "probe_budget": "budget",
        },
    ),
    "noise": (
        NoiseConfig,
        {
            "noise_every": "every",
            "noise_samples": "samples",
            "noise_bn": "bn_mode",
            "noise_piece": "piece",
        },
    ),
}
"""For each part of `TrainConfig` the class, and the field of each option."""

_SHARPNESS, _NOISE = "Sharpness", "Gradient noise"


PROBE_OPTIONS = (
    option(
        "--sharpness-every", section=_SHARPNESS,
        help="Measure the Hessian's top eigenvalue every so many steps, or 'log': dense early.",
    ),
    option(
        "--sharpness-operators", section=_SHARPNESS, greedy=True, type=Choice(OPERATORS),
        default=("hessian", "effective", "relative", "adaptive"),
        help="The Hessian; scaled by the optimizer's rates; scaled by each tensor's norm; the Gauss-Newton matrix; "
        "adaptive, which no change of scale moves and minimizer's verdict needs.",
    ),
    option(
        "--sharpness-measures", section=_SHARPNESS, greedy=True, type=Choice(IN_TRAINING), default=("eigenvalue",),
        help="The top eigenvalue of each operator; the curvature along mini-batches' gradients; that along the update; "
        "and 2/rate at the multiple of the update that raises the loss.",
    ),
    option(
        "--sharpness-samples", section=_SHARPNESS, type=int, default=256,
        help="Training samples it is measured on.",
    ),
    option(
        "--sharpness-bn", section=_SHARPNESS, type=Choice(BN_MODES), default="train",
        help="BatchNorm's mode while it is measured.",
    ),
    option("--sharpness-tol", section=_SHARPNESS, type=float, default=1e-3, help="Relative error of the eigenvalue."),
    option("--probe-budget", section=_SHARPNESS, help="Highest share of the run's time for all probes, such as 10%."),
    option(
        "--noise-every", section=_NOISE,
        help="Measure the gradient's signal and noise on a fixed sample every so many steps, or 'log': dense early.",
    ),
    option("--noise-samples", section=_NOISE, type=int, default=512, help="Training samples they are measured on."),
    option(
        "--noise-bn", section=_NOISE, type=Choice(BN_MODES), default="frozen-batch",
        help="BatchNorm's mode while they are measured; train needs --noise-piece.",
    ),
    option(
        "--noise-piece", section=_NOISE, type=int, show_default="single samples",
        help="Compare the gradients of pieces of so many samples, each a batch of its own.",
    ),
)  # fmt: skip
"""The options, in the order of the help."""
