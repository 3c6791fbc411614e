"""States whose lists hold one another: what a few of them stand for when they are written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvlars_probe.admission import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXT = 8
"""Characters of a text that count as one value."""


def excess(value: Any) -> str | None:
    """What a value of dicts, lists, tuples and sets costs too much of; None where it costs no more than it may.

    Each object is counted once, however often it is held, so that this takes no longer than the value is large. "A
    billion laughs" are thirty lists, each of which holds the next one twice.
    """
    # By identity: the number of values below an object when it is written out, and the levels below it.
    done: dict[int, tuple[int, int]] = {}
    begun: set[int] = set()
    waiting = [value] if _is_container(value) else []
    while waiting:
        node = waiting[-1]
        if id(node) in done:
            waiting.pop()
        elif id(node) not in begun:
            begun.add(id(node))
            below = [item for item in _items(node) if _is_container(item) and id(item) not in done]
            # What has begun and isn't done holds this node.
            if any(id(item) in begun for item in below):
                return "it holds itself"
            waiting += below
        else:
            done[id(waiting.pop())] = size, depth = _total(node, done)
            if size > limits.VALUE_ELEMENTS:
                return f"written out it has more than {limits.VALUE_ELEMENTS:,} values"
            if depth > limits.VALUE_DEPTH:
                return f"it nests more than {limits.VALUE_DEPTH} deep"
    return None


def _total(node: Any, done: dict[int, tuple[int, int]]) -> tuple[int, int]:
    size = depth = 0
    for item in _items(node):
        if _is_container(item):
            below, levels = done[id(item)]
            size, depth = size + below, max(depth, levels)
        else:
            size += 1 + (len(item) // _TEXT if isinstance(item, str | bytes) else 0)
    return size + 1, depth + 1


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | set | frozenset)


def _items(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node
        yield from node.values()
    else:
        yield from node
