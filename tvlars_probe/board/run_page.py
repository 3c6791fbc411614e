"""The page of one run: its frame, and the parts that are sent again when they have changed."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from tvlars_probe.admission.names import drawable
from tvlars_probe.analyses.wording import counted
from tvlars_probe.board.elements import attribute, duration, number, page, progress, status_badge, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tvlars_probe.live.state import Furthest, LiveState, TopEigenvalue

MOST_FINDINGS = 50
"""Findings that are shown, the newest ones."""

QUANTITIES = {"trust_ratio": "trust ratio", "grad_norm": "‖g‖", "relative_update": "‖Δw‖/‖w‖"}

_WAITING = '<p class="quiet">Reading …</p>'

_HEAVY = '<h2>Verdicts</h2><p class="quiet">Verdicts and their charts are being made …</p>'

_OPERATORS = {
    "hessian": "sharpness", "effective": "effective sharpness", "relative": "relative sharpness",
    "adaptive": "adaptive sharpness",
}  # fmt: skip


def run_page(key: str, name: str) -> str:
    """The frame of a run's page. Everything else comes later: a large run mustn't keep a reader waiting."""
    parts = "".join(
        f'<section id="{anchor}" class="part"><h2>{title}</h2><div id="part-{anchor}">{_WAITING}</div></section>\n'
        for anchor, title in (("findings", "Findings"), ("state", "Progress"))
    )
    further = "".join(
        f'<section class="part"><h2>{title}</h2><div id="part-{anchor}">{_WAITING}</div></section>\n'
        for anchor, title in (
            ("furthest", "Tensors furthest from their own median"), ("sharpness", "Sharpness beside its limit"),
        )
    )  # fmt: skip
    bar = (
        f'<a href=".">All runs</a><span id="picker"></span><a id="report" href="report?run={key}">'
        "Save the report (one file to share)</a>"
    )
    said = '<p id="said" class="unseen" role="status" aria-live="polite"></p>\n'
    main = f'{said}{parts}<div id="charts">{_WAITING}</div>\n{further}<div id="sections">{_HEAVY}</div>\n'
    return page("run", name, bar, main, run=key)


def compare_page(keys: Sequence[str], names: Sequence[str]) -> str:
    """The frame of a comparison; the comparison itself comes later."""
    query = "&amp;".join(f"run={key}" for key in keys)
    bar = (
        f'<a href=".">All runs</a><span id="picker"></span><a id="report" href="report?{query}">'
        "Save the report of these runs</a>"
    )
    listed = "".join(
        f'<li><a href="run?run={key}">{text(name)}</a></li>' for key, name in zip(keys, names, strict=True)
    )
    main = f'<ul class="compared">{listed}</ul><div id="sections">{_HEAVY}</div>\n'
    return page("compare", f"{counted(len(keys), 'run')} compared", bar, main, run=" ".join(keys))


def parts(state: LiveState) -> dict[str, str]:
    """By name, each part of the page as HTML."""
    return {
        "findings": _findings(state),
        "state": _state(state),
        "furthest": "".join(_furthest(QUANTITIES[name], one) for name, one in state.furthest.items()) or _none("layer"),
        "sharpness": _sharpness(state.sharpness),
    }


def said(state: LiveState) -> str:
    """What a screen reader says when findings or the status change."""
    newest = f", the newest in step {state.findings[-1].step:,}" if state.findings else ""
    return f"{state.status}; {counted(state.finding_count, 'finding')}{newest}"


def _none(what: str) -> str:
    return f'<p class="quiet">No {what} is on record.</p>'


def _findings(state: LiveState) -> str:
    if not state.findings:
        return '<p class="quiet">None on record.</p>'
    newest = state.findings[::-1][:MOST_FINDINGS]
    rows = "".join(
        f'<li><b>step {one.step:,}</b> <span class="rule">{text(one.rule, 60)}</span> {text(one.text, 600)}</li>'
        for one in newest
    )
    more = state.finding_count - len(newest)
    note = f'<p class="quiet">… and {counted(more, "earlier finding")}</p>' if more > 0 else ""
    return f'<ol class="findings">{rows}</ol>{note}'


def _state(state: LiveState) -> str:
    trouble = "" if state.trouble is None else f'<p class="trouble" role="alert">{text(state.trouble, 600)}</p>'
    notes = "".join(f"<li>{text(note, 400)}</li>" for note in state.notes[-3:])
    listed = f'<ul class="notes">{notes}</ul>' if notes else ""
    cards = "".join(
        f'<div class="figure"><dt>{attribute(name)}</dt><dd>{shown}</dd></div>' for name, shown in _figures(state)
    )
    return (
        f'<p class="now">{status_badge(state.status)} {progress(state.steps_done, state.steps_total)}</p>{trouble}'
        f'<dl class="figures">{cards}</dl>{listed}'
    )


def _figures(state: LiveState) -> Iterator[tuple[str, str]]:
    """The run's last figures: each its name and its HTML."""
    if state.phase not in (None, "train"):
        yield "phase", text(state.phase, 40)
    if state.rate is not None:
        yield "steps per second", number(state.rate, ".3g")
    if state.seconds_left is not None and state.status == "running" and math.isfinite(state.seconds_left):
        yield "time left", duration(state.seconds_left)
    if state.last_time is not None:
        yield "last step on record", f'<time data-since="{state.last_time.isoformat()}"></time> ago'
    for name, value in (("loss", state.loss), ("‖g‖", state.grad_norm), ("learning rate", state.lr)):
        if value is not None:
            yield name, number(value)
    for name, value in state.epoch.items():
        if name.endswith(("loss", "acc1")):
            label = name.replace("_", " ").replace("acc1", "accuracy")
            yield label, f"{number(value, '.2f')} %" if name.endswith("acc1") else number(value)


def _furthest(quantity: str, furthest: Furthest) -> str:
    """A table of the tensors furthest from their own median."""
    if furthest.step is None:
        return ""
    rows = "".join(
        # As charts have the name: a click on the row selects the tensor there.
        f'<tr data-layer="{escape(drawable(one.parameter))}"><td>{text(one.parameter)}</td>'
        f"<td class=n>{number(one.value)}</td><td class=n>{number(one.median)}</td>"
        f"<td class=n>{number(one.factor, '.3g')}</td></tr>"
        for one in furthest.tensors
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("tensor", quantity, "its median", "factor"))
    title = f"{quantity}, step {furthest.step:,}"
    if not rows:
        return f'<p class="quiet">{escape(title)}: every tensor is at its median.</p>'
    return (
        f'<div class="scroll"><table><caption>{escape(title)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _sharpness(measured: Sequence[TopEigenvalue]) -> str:
    if not measured:
        return _none("sharpness")
    rows = "".join(
        f"<tr><td>{attribute(_OPERATORS.get(one.operator, one.operator), 60)}</td><td class=n>{one.step:,}</td>"
        f"<td class=n>{number(one.value)}{_error(one)}</td><td class=n>{number(one.limit)}</td>"
        f"<td class=n>{_share(one)}</td></tr>"
        for one in measured
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("", "step", "value", "limit", "of the limit"))
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _error(one: TopEigenvalue) -> str:
    told = "" if one.error is None else f" ± {number(one.error, '.2g')}"
    return told if one.converged else f"{told} (not converged)"


def _share(one: TopEigenvalue) -> str:
    if not one.limit or not math.isfinite(one.value):
        return ""
    share = f"{100 * one.value / one.limit:.3g} %"
    return f'<em class="warn">{share}</em>' if one.value > one.limit else share
