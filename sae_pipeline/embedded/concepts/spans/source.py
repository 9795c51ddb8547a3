"""Positions: from the parser's lines and byte columns to characters, and from there to the text as it was given."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

_BOM = "\ufeff"


class UnparsableSource(ValueError):
    """A text that this Python does not accept as a module; take it out of the documents."""


class Normalised:
    """A text as Python's parser reads it: no byte-order mark, and `\\n` for every `\\r\\n` and `\\r`.

    Attributes:
        text: the normalised text.
    """

    def __init__(self, given: str) -> None:
        self._bom = len(_BOM) if given.startswith(_BOM) else 0
        pieces = given[self._bom :].split("\r\n")
        self.text = "\n".join(pieces).replace("\r", "\n")
        ends = accumulate(len(piece) + 1 for piece in pieces[:-1])
        self._joints = [end - 1 for end in ends]  # where a `\n` stands for two characters

    def original(self, at: int) -> int:
        """Position in the text as given of position `at` of the normalised one."""
        return at + self._bom + bisect_left(self._joints, at)


class Lines:
    """Where the lines of a text begin; only `\\n` ends a line."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._starts = [0, *accumulate(len(line) + 1 for line in self._lines)]
        self._ascii = text.isascii()

    def at(self, line: int, column: int) -> int:
        """Position of a line, counted from 1, and a column in characters."""
        return self._starts[line - 1] + column

    def at_bytes(self, line: int, column: int) -> int:
        """Position of a line, counted from 1, and a column in bytes of UTF-8, as `ast` counts."""
        if not self._ascii:
            column = len(self._lines[line - 1].encode()[:column].decode())
        return self._starts[line - 1] + column
