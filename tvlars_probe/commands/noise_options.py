"""How the gradient's noise is measured in training, as options of a command line."""

from __future__ import annotations

import click

from tvlars_probe.commands.options import option
from tvlars_probe.curvature.results import BN_MODES

NOISE_FIELDS = {
    "noise_every": "every",
    "noise_samples": "samples",
    "noise_bn": "bn_mode",
    "noise_piece": "piece",
}
"""The field of `tvlars_probe.runners.noise_config.NoiseConfig` for each option."""

_SECTION = "Gradient noise"

NOISE_OPTIONS = (
    option(
        "--noise-every", section=_SECTION,
        help="Measure the gradient's signal and noise on a fixed sample every so many steps, or 'log': dense early.",
    ),
    option("--noise-samples", section=_SECTION, type=int, default=512, help="Training samples they are measured on."),
    option(
        "--noise-bn", section=_SECTION, type=click.Choice(list(BN_MODES), case_sensitive=False), default="frozen-batch",
        help="BatchNorm meanwhile; train needs --noise-piece.",
    ),
    option(
        "--noise-piece", section=_SECTION, type=int, show_default="single samples",
        help="Compare the gradients of pieces of so many samples, each a batch of its own.",
    ),
)  # fmt: skip
"""The options, in the order of the help."""
