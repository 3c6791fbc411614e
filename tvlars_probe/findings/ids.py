"""The ids of the rules, and the words that stand for several of them. Imports nothing: the command line lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvlars_probe.errors import UserError, unknown

if TYPE_CHECKING:
    from collections.abc import Iterable

OFF = ("ratio_clamped", "excluded_overwritten", "batch_beyond_noise")
"""Rules that more than 5 % of sound runs break (docs/guides/findings.md): they are on only where they are asked for."""

IDS = (
    "non_finite",
    "loss_spike",
    "grad_spike",
    "ratio_clamped",
    "ratio_vanished",
    "full_rate_from_zero",
    "phi_dead",
    "weight_overwritten",
    "excluded_overwritten",
    "update_below_rounding",
    "batch_beyond_noise",
)
"""All rules. An id never changes."""

DEFAULT = tuple(name for name in IDS if name not in OFF)

WORDS = {"default": DEFAULT, "all": IDS, "none": ()}
"""Words that stand for several rules."""


def known_rules(names: Iterable[str], what: str) -> tuple[str, ...]:
    """The ids of the rules that are named, once each.

    Args:
        names: ids of rules, or one of `WORDS`.
        what: the name of the argument or option that gave them.

    Raises:
        UserError: there is no such rule, or these are no names.
    """
    if not hasattr(names, "__iter__"):
        raise UserError(f"{what} takes ids of rules, such as ('non_finite',), got {names!r:.60}")
    found: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        if not isinstance(name, str) or (name not in IDS and name not in WORDS):
            raise unknown(f"rule in {what}", str(name), (*IDS, *WORDS))
        found += WORDS.get(name, (name,))
    return tuple(dict.fromkeys(found))
