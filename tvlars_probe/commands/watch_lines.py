"""What `watch` shows, as lines that fit the terminal."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from tvlars_probe.analyses.wording import counted
from tvlars_probe.charts.names import shortened
from tvlars_probe.commands.sparkline import sparkline
from tvlars_probe.commands.text import one_line
from tvlars_probe.live.state import DAMAGED, QUANTITIES, RUNNING
from tvlars_probe.runners.progress import clock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from tvlars_probe.live.state import Furthest, LiveState

_LABELS = dict(zip(QUANTITIES, ("trust ratio", "‖g‖", "‖Δw‖/‖w‖"), strict=True))

_STYLES = {RUNNING: "green", "completed": "bold green", "interrupted": "yellow", DAMAGED: "yellow"}

_PLAIN = str.maketrans(dict(zip("▁▂▃▄▅▆▇█‖Δ×…━─", ".:-=+*%#|dx~=-", strict=True)))
"""Stand-ins where the terminal's encoding lacks these signs."""

_TENSORS, _LEAST_FINDINGS, _MOST_FINDINGS = 5, 3, 20
_LABEL, _NUMBER, _FACTOR = 13, 11, 9
"""Widths of a table's columns."""

_NARROWEST = 10
"""Characters in which a finding is wrapped at least: in fewer there is no room for the sign that it goes on."""

_SPAN = 24
"""Characters of the longest range of losses."""

_DAYS_FROM = 2 * 86400


def run_lines(
    state: LiveState, now: datetime, width: int, height: int | None = None, *, plain: bool = False
) -> list[Text]:
    """The lines about one run.

    Args:
        state: of the run.
        now: the time, from which ages are counted.
        width: characters of a line, at most.
        height: lines, at most; without it there are as many as there is to say.
        plain: whether the terminal's encoding is ASCII.
    """
    head = [*_head(state, now, width)]
    wanted = _LEAST_FINDINGS if state.findings else 0
    tensors = _TENSORS if height is None else max(1, min(_TENSORS, (height - len(head) - 2 - wanted) // 3))
    lines = [*head, *_tables(state, width, tensors)]
    lines += _findings(state, width, _MOST_FINDINGS if height is None else height - len(lines) - 1)
    return [_fit(line, width, plain) for line in lines[:height]]


def summary(state: LiveState, *, plain: bool = False) -> str:
    """A run in one line of any length, for pipes."""
    parts = [one_line(state.name), state.status, _steps(state)]
    parts += [f"loss {_figure(state.loss, 5)}"] if state.loss is not None else []
    parts += _speed(state)
    text = "  ".join(parts)
    return text.translate(_PLAIN) if plain else text


def list_lines(
    states: Sequence[LiveState], count: int, now: datetime, width: int, *, plain: bool = False
) -> list[Text]:
    """A line for each run, one above them, and one about the runs that aren't shown."""
    headings = ("run", "status", "steps", "loss", "steps/s", "left", "last finding")
    rows = [_row(state) for state in states]
    # All but the first and the last column are as wide as their widest cell.
    widths = [max(map(cell_len, cells)) for cells in zip(headings, *rows, strict=True)]
    rest = width - sum(widths[1:-1]) - 2 * (len(widths) - 1)
    widths[0] = max(8, min(widths[0], max(rest // 2, rest - widths[-1])))
    widths[-1] = max(4, rest - widths[0])
    names = shortened([row[0] for row in rows], widths[0], cell_len)
    lines = [Text(_cells(headings, widths), "dim")]
    for state, row in zip(states, rows, strict=True):
        line = Text(_cells((names.get(row[0], row[0]), *row[1:]), widths))
        line.stylize(_style(state), widths[0] + 2, widths[0] + 2 + widths[1])
        lines.append(line)
    if count > len(states):
        lines.append(Text(f"and {counted(count - len(states), 'more run')}", "dim"))
    return [_fit(line, width, plain) for line in lines]


def _row(state: LiveState) -> tuple[str, ...]:
    total = "" if state.steps_total is None else f"/{state.steps_total:,}"
    runs = state.status == RUNNING
    last = state.findings[-1] if state.findings else None
    return (
        one_line(state.name),
        state.status,
        f"{state.steps_done:,}{total}",
        "" if state.loss is None else _figure(state.loss),
        "" if state.rate is None else f"{state.rate:.3g}",
        clock(state.seconds_left) if runs and state.seconds_left is not None else "",
        "" if last is None else one_line(f"{last.rule} in step {last.step:,}"),
    )


def _cells(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The cells side by side; numbers are set flush right."""
    set_ = [set_cell_size(_cut(cells[0], widths[0]), widths[0]), set_cell_size(cells[1], widths[1])]
    set_ += [" " * (width - cell_len(cell)) + cell for cell, width in zip(cells[2:-1], widths[2:-1], strict=True)]
    return "  ".join([*set_, _cut(cells[-1], widths[-1])])


def _head(state: LiveState, now: datetime, width: int) -> Iterator[Text]:
    """The lines above the tables."""
    status = state.status if state.phase is None else f"{state.status}, phase {one_line(state.phase)}"
    status = _cut(status, width // 2)
    room = width - cell_len(status) - 2
    yield Text.assemble((set_cell_size(_cut(one_line(state.name), room), room + 2), "bold"), (status, _style(state)))
    yield Text("  ".join([*_progress(state, width), *_speed(state)]))
    if state.losses:
        told = "" if state.loss is None else _figure(state.loss, 5)
        line, span = _curve(state.losses, width - 18)
        yield Text.assemble(f"loss {told:<11}", (line, "cyan"), f"  {span}")
    figures = [f"‖g‖ {_figure(state.grad_norm)}"] if state.grad_norm is not None else []
    figures += [f"lr {state.lr:.4g}"] if state.lr is not None else []
    if (age := state.age(now)) is not None:
        figures.append(f"last row {_since(age)} ago")
    if figures:
        yield Text("   ".join(figures))
    if state.sharpness:
        yield _sharpness(state)
    if state.epoch:
        yield Text("   ".join(_epoch(state)))
    if state.trouble:
        yield Text(one_line(state.trouble), "red")
    if state.status == "failed" and state.notes:
        yield Text(one_line(state.notes[-1]), "red")


def _curve(losses: Sequence[tuple[int, float]], room: int) -> tuple[str, str]:
    """The losses as blocks, and their range, which together take so much room."""
    narrow = sparkline(losses, max(room - _SPAN, 1))
    # The range is that of the blocks: of more of them it can be another one.
    wide = sparkline(losses, max(room - len(narrow[1]), 1))
    return wide if len(wide[0]) + len(wide[1]) <= room else narrow


def _figure(value: float, digits: int = 4) -> str:
    """A figure in so many digits, or the word for one that is none."""
    return f"{value:.{digits}g}" if math.isfinite(value) else "not finite"


def _since(seconds: float) -> str:
    # Clocks of two machines differ: what comes from the future is new.
    return clock(max(seconds, 0)) if seconds < _DAYS_FROM else f"{int(seconds // 86400):,} d"


def _steps(state: LiveState) -> str:
    return f"step {state.steps_done:,}" + ("" if state.steps_total is None else f" of {state.steps_total:,}")


def _progress(state: LiveState, width: int) -> Iterator[str]:
    yield _steps(state)
    if state.steps_total:
        share, length = min(state.steps_done / state.steps_total, 1.0), max(4, width // 4)
        full = int(share * length)
        yield f"{'━' * full}{'─' * (length - full)} {int(share * 100)} %"


def _speed(state: LiveState) -> list[str]:
    parts = [] if state.rate is None else [f"{state.rate:.3g} steps/s"]
    if state.seconds_left is not None and state.status == RUNNING:
        parts.append(f"{clock(state.seconds_left)} left")
    return parts


def _sharpness(state: LiveState) -> Text:
    line, last = Text("sharpness"), max(one.step for one in state.sharpness)
    for one in sorted(state.sharpness, key=lambda one: one.limit is None):  # first those that have a limit
        beyond = one.limit is not None and one.value > one.limit
        text = f"  {one_line(one.operator)} {one.value:.3g}"
        text += "" if one.limit is None else f" {'>' if beyond else '<'} limit {one.limit:.3g}"
        text += ("" if one.converged else ", not converged") + ("" if one.step == last else f" in step {one.step:,}")
        line.append(text, "bold red" if beyond else "")
    return line.append(f"  (step {last:,})")


def _epoch(state: LiveState) -> Iterator[str]:
    row = state.epoch
    yield f"epoch {row.get('epoch', '?')}"
    for part in ("train", "val", "test"):
        figures = [f"loss {_figure(row[f'{part}_loss'])}"] if f"{part}_loss" in row else []
        figures += [f"acc {row[f'{part}_acc1']:.2f} %"] if f"{part}_acc1" in row else []
        if figures:
            yield f"{part} {' '.join(figures)}"
    if "seconds" in row:
        yield clock(row["seconds"])


def _tables(state: LiveState, width: int, most: int) -> Iterator[Text]:
    """The tensors furthest from their own median, by quantity."""
    steps = [there.step for there in state.furthest.values() if there.step is not None]
    if not steps:
        yield Text("No figures of layers on record", "dim")
        return
    room = max(_LABEL, width - _LABEL - 2 * _NUMBER - _FACTOR)  # where it is narrower, the last columns are cut
    head = f"{'':<{_LABEL}}{_cut(f'far from own median, step {max(steps):,}', room):<{room}}"
    yield Text(f"{head}{'value':>{_NUMBER}}{'median':>{_NUMBER}}{'factor':>{_FACTOR}}", "dim")
    for quantity in QUANTITIES:
        there = state.furthest[quantity]
        label = [_LABELS[quantity]]
        # ‖Δw‖ of a large model isn't there in every recorded step.
        label += [f"step {there.step:,}"] if there.step is not None and there.step != max(steps) else []
        yield from _table(there, label, room, most)


def _table(there: Furthest, label: Sequence[str], room: int, most: int) -> Iterator[Text]:
    tensors = there.tensors[:most]
    if not tensors:
        yield Text(f"{label[0]:<{_LABEL}}{'not on record' if there.step is None else 'each at its median'}")
    names = shortened([one_line(tensor.parameter) for tensor in tensors], room - 1, cell_len)
    for index, tensor in enumerate(tensors):
        name = _cut(names[one_line(tensor.parameter)], room - 1)
        first = _cut(label[index] if index < len(label) else "", _LABEL - 1)
        yield Text(
            f"{set_cell_size(first, _LABEL)}{set_cell_size(name, room)}"
            f"{tensor.value:>{_NUMBER}.4g}{tensor.median:>{_NUMBER}.4g}{_factor(tensor.factor):>{_FACTOR}}"
        )


def _factor(factor: float) -> str:
    if factor < 1e3:
        return f"×{factor:.3g}"
    return f"×{factor:,.0f}" if factor < 1e6 else f"×{factor:.0e}".replace("e+0", "e").replace("e+", "e")


def _findings(state: LiveState, width: int, room: int) -> Iterator[Text]:
    """The findings, the newest first, in so many lines below a heading."""
    count = state.finding_count
    yield Text(f"{counted(count, 'finding')}, newest first" if count > 1 else counted(count, "finding"), "dim")
    for finding in reversed(state.findings):
        text = one_line(str(finding))[: 4 * width]
        lines = textwrap.wrap(text, max(width, _NARROWEST), subsequent_indent="  ", max_lines=2)
        for line in lines[: max(room, 0)]:
            yield Text(line, "yellow")
        room -= len(lines)
        if room <= 0:
            return


def _style(state: LiveState) -> str:
    return _STYLES.get(state.status, "bold red")


def _cut(text: str, width: int) -> str:
    """The text, its end replaced by an ellipsis where it is wider."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"


def _fit(line: Text, width: int, plain: bool) -> Text:
    """The line, cut where it is too wide, in signs that the terminal has."""
    line.truncate(width, overflow="ellipsis")
    if plain:
        # Names in other scripts are spelt out; what is too long then is cut again.
        line.plain = line.plain.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
        line.truncate(width, overflow="crop")
    line.no_wrap = True
    return line
