"""A text that every Python ships, as numbers of its characters: Python's help on its topics, half a million of them."""

from pydoc_data.topics import topics

import torch
from torch import Tensor

CHARACTERS = [chr(code) for code in (10, *range(32, 127))]
"""The characters that are told apart: a line's end and the visible ones of ASCII."""

MASK, VOCABULARY = len(CHARACTERS), len(CHARACTERS) + 1
"""The number that stands for a hidden character, and the number of numbers."""


def numbers() -> Tensor:
    """The whole text, a number per character; of shape (characters,)."""
    code = {character: number for number, character in enumerate(CHARACTERS)}
    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor([code[character] for character in text if character in code])


class Lines(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Pieces of the text, all of one length.

    Args:
        length: characters of a piece.
        hidden: share of the characters that are hidden, whose prediction is the loss; None predicts each character from
            those before it.
        seed: of what is hidden.
    """

    def __init__(self, length: int, hidden: float | None = None, seed: int = 0) -> None:
        self._text = numbers()
        self._length, self._hidden, self._seed = length, hidden, seed

    def __len__(self) -> int:
        return len(self._text) // self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        piece = self._text[index * self._length : (index + 1) * self._length]
        if self._hidden is None:
            return {"input_ids": piece, "labels": piece}
        generator = torch.Generator().manual_seed(self._seed * len(self) + index)
        is_hidden = torch.rand(self._length, generator=generator) < self._hidden
        return {"input_ids": piece.masked_fill(is_hidden, MASK), "labels": piece.masked_fill(~is_hidden, -100)}
