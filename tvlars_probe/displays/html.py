"""Texts and tables as HTML. Whatever a run's text holds, it is text here and nothing else."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from tvlars_probe.admission.names import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_LONG = 1e12
"""Whole numbers from here on have an exponent: they are no counts, but norms and losses that exploded."""


def plain(text: str) -> str:
    """A text of a run for a page: control characters and marks of writing direction spelt out, and escaped."""
    return escape(printable(text))


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def table(rows: Sequence[Mapping[Any, Any]], headings: Mapping[str, str]) -> str:
    """A table. A row with a ``parameter`` has it as ``data-layer``, by which a page's script finds it.

    Args:
        rows: by column, a cell's value; None and NaN leave the cell empty.
        headings: headings by column; only these columns are shown, in this order.
    """
    heads = "".join(
        f"<th{' class=n' if any(_is_number(row.get(name)) for row in rows) else ''}>{plain(heading)}</th>"
        for name, heading in headings.items()
    )
    body = "".join(_row(row, headings) for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: Mapping[Any, Any], headings: Mapping[str, str]) -> str:
    layer = row.get("parameter")
    mark = f' data-layer="{escape(str(layer))}"' if layer is not None else ""
    return f"<tr{mark}>" + "".join(_cell(name, row.get(name)) for name in headings) + "</tr>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(name: str, value: Any) -> str:
    if value is None or value != value:  # NaN differs from itself
        return "<td></td>"
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return f"<td>{'yes' if value else 'no'}</td>"
    if _is_number(value):
        # `value % 1` is 0 for a whole number; for infinity it is NaN.
        is_count = value % 1 == 0 and abs(value) < _LONG
        text = f"{100 * value:.3g} %" if name.endswith("_share") else f"{value:,.0f}" if is_count else f"{value:.4g}"
        return f"<td class=n>{text}</td>"
    return f"<td>{plain(str(value))}</td>"
