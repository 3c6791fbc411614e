"""Names shortened so that they fit an axis, a legend or a column, and still tell each other apart.

Names such as ``bert.encoder.layer.0.attention.self.query.weight`` begin alike: cut at their ends, they all look the
same. Here the end of a name stays, and so do the words that tell it from every other name. An ellipsis stands for each
stretch that is left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Set

    _Words = tuple[list[str], frozenset[str]]

GAP = "…"
"""What stands for the words left out, one or more."""

MOST_NAMES = 2000
"""Most names that are shortened: each is compared with all others."""

# A word with the separators behind it, which make the name whole again. Longer words are cut: one word may be all of a
# name, and then only a part of it can be shown.
_WORD = re.compile(r"[^\W\d_]{1,16}[\W_]{0,3}|\d{1,16}[\W_]{0,3}|[\W_]{1,4}")


def shortened(names: Iterable[str], width: float, measure: Callable[[str], float]) -> dict[str, str]:
    """A label for each name, at most as wide as ``width`` wherever the names can still be told apart then.

    A name that fits is its own label. No two labels are equal: with one or more words for each ellipsis, a label can be
    read as its own name and as no other. Where this takes more room than ``width``, the label is wider. Of more than
    `MOST_NAMES` names each is its own label.

    Args:
        names: the names that are shown together.
        width: the room of a label.
        measure: width of a text, in the unit of ``width``.

    Returns:
        by name, its label.
    """
    names = [*dict.fromkeys(names)]
    if len(names) > MOST_NAMES:
        return {name: name for name in names}
    words = {name: _WORD.findall(name) for name in names}
    ends: dict[str, dict[str, _Words]] = {}
    for name, parts in words.items():
        ends.setdefault(parts[-1] if parts else "", {})[name] = parts, frozenset(parts)
    # Of all names that end alike, how many have a word: counted once, not for each of the names.
    common = {end: Counter(word for _, those in alike.values() for word in those) for end, alike in ends.items()}
    labels = {}
    for name, parts in words.items():
        if measure(name) <= width:
            labels[name] = name
            continue
        alike = ends[parts[-1]]
        kept = _telling(parts, [other for key, other in alike.items() if key != name], common[parts[-1]])
        for place in reversed(range(len(parts))):
            # Words join a stretch that is kept already, from its right to its left: the end of the name first.
            if place not in kept and place + 1 in kept and measure(_label(parts, kept | {place})) <= width:
                kept = kept | {place}
        label = _label(parts, kept)
        labels[name] = label if measure(label) < measure(name) else name
    # Names that have ellipses of their own may look like another's label.
    while True:
        times = Counter(labels.values())
        repeated = [name for name, label in labels.items() if label != name and times[label] > 1]
        if not repeated:
            return labels
        labels |= {name: name for name in repeated}


def _telling(parts: Sequence[str], others: Sequence[_Words], common: Counter[str]) -> Set[int]:
    """Places of a name's last word and of the words that tell it from all others, as few as can easily be found.

    Args:
        parts: the name's words.
        others: the words of the other names that end in the same one.
        common: by word, how many of all these names have it, this one among them.
    """
    kept = frozenset({len(parts) - 1})
    # An ellipsis and the last word can be any of the others, unless that word is all of it.
    left = [other for other in others if len(other[0]) > 1] if len(parts) > 1 else []
    while left:
        free = [place for place in range(len(parts)) if place not in kept]
        # A word that many others lack tells the most of them apart. Of equal ones the last stands next to the end.
        if len(kept) == 1:
            lacking = {place: len(others) + 1 - common[parts[place]] for place in free}
        else:
            lacking = {place: sum(parts[place] not in those for _, those in left) for place in free}
        best = max(free, key=lambda place: (lacking[place], place))
        if not lacking[best]:
            # The others have all these words, in another order, or more of them.
            still = {p: sum(_could_be(parts, kept | {p}, other) for other, _ in left) for p in free}
            best = min(free, key=lambda place: (still[place], -place))
        kept = kept | {best}
        left = [(other, those) for other, those in left if parts[best] in those and _could_be(parts, kept, other)]
    return kept


def _label(parts: Sequence[str], kept: Set[int]) -> str:
    """The words kept, with an ellipsis for each stretch of others."""
    text = ""
    for place, part in enumerate(parts):
        if place in kept:
            text += part
        elif not place or place - 1 in kept:
            text += GAP
    return text


def _could_be(parts: Sequence[str], kept: Set[int], other: Sequence[str]) -> bool:
    """Whether the label of ``parts`` with the words ``kept`` can be read as the name of the words ``other``."""
    *runs, last = _runs(parts, kept)
    end = len(other) - len(last)
    if end < 0 or list(other[end:]) != last:
        return False
    # A label begins with an ellipsis unless the first word is kept. Each ellipsis stands for one word at least.
    begins, place = 0 in kept, 0 if 0 in kept else 1
    for run in runs:
        # The earliest place leaves the most room for what follows.
        places = range(1) if begins else range(place, end)
        found = next((p for p in places if list(other[p : p + len(run)]) == run), None)
        if found is None:
            return False
        begins, place = False, found + len(run) + 1
    return end == 0 if begins else place <= end


def _runs(parts: Sequence[str], kept: Set[int]) -> list[list[str]]:
    """The stretches of words kept, in order; the last one ends the name."""
    runs: list[list[str]] = []
    for place, part in enumerate(parts):
        if place not in kept:
            continue
        if place and place - 1 in kept:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def pixels(text: str, size: float = 11.0) -> float:
    """Width of a text in pixels of a chart, in the wide sans-serif letters of DejaVu; narrower fonts need less.

    Args:
        text: the text.
        size: size of its letters in pixels.
    """
    return size * sum(map(_em, text))


def _em(letter: str) -> float:
    """Width of a letter as a share of the size of letters."""
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if letter in "ijl.,:;'|!()[] -ftrI":
        return 0.36
    if letter in "mwMW@%…":
        return 0.98
    return 0.7 if letter.isupper() else 0.63
