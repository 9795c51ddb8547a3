"""The replacement fields of an f-string, found without the tokenizer: Python 3.11's does not look inside."""

from __future__ import annotations

import re
from typing import NamedTuple

_PREFIXES = frozenset({"r", "u", "b", "br", "rb", "f", "fr", "rf", "t", "tr", "rt"})
_OPENING = re.compile("([A-Za-z]*)('''|\"\"\"|'|\")")


class Field(NamedTuple):
    """One `{…}` of an f-string, in positions of its literal.

    Attributes:
        start, end: the field with its braces.
        expression_start, expression_end: the expression inside, without `=`, conversion and format.
        nested: it stands in another field's format.
    """

    start: int
    end: int
    expression_start: int
    expression_end: int
    nested: bool

    def moved(self, by: int) -> Field:
        """The same field in positions of a text in which the literal begins at `by`."""
        start, end, expression_start, expression_end, nested = self
        return Field(start + by, end + by, expression_start + by, expression_end + by, nested)


def replacement_fields(literal: str) -> list[Field]:
    """Fields of an f-string's literal (prefix and quotes included), nested formats too, but not f-strings in fields."""
    scanner = _Scanner(literal)
    scanner.literal(0)
    return sorted(scanner.found)


class _Scanner:
    """Recursive descent over text, fields, expressions and formats; each method returns where its part ends."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.found: list[Field] = []
        self._level = 0  # of literals within each other; only the outermost one's fields are kept

    def literal(self, at: int) -> int:
        opening = _OPENING.match(self.text, at)
        if opening is None:
            raise ValueError(f"no string literal at {at} of {self.text!r}")
        prefix, quotes = opening.group(1).lower(), opening.group(2)
        self._level += 1
        at = self._content(opening.end(), quotes, raw="r" in prefix, fields="f" in prefix or "t" in prefix)
        self._level -= 1
        return at + len(quotes)

    def _content(self, at: int, quotes: str, *, raw: bool, fields: bool) -> int:
        while not self.text.startswith(quotes, at):
            if self.text[at] == "\\":
                at = self._escape(at, raw=raw, fields=fields)
            elif fields and self.text.startswith(("{{", "}}"), at):
                at += 2
            elif fields and self.text[at] == "{":
                at = self._field(at, nested=False)
            else:
                at += 1
        return at

    def _escape(self, at: int, *, raw: bool, fields: bool) -> int:
        if fields and not raw and self.text.startswith("\\N{", at):
            return self.text.index("}", at) + 1  # the name of a character, not a field
        return at + 1 if fields and self.text[at + 1] in "{}" else at + 2

    def _field(self, start: int, *, nested: bool) -> int:
        place = len(self.found)
        end_of_expression = at = self._expression(start + 1)
        if self.text[at] == "!":
            at += 1
            while self.text[at] not in ":}":
                at += 1
        if self.text[at] == ":":
            at = self._format(at + 1)
        if self._level == 1:
            written = self.text[start + 1 : end_of_expression].rstrip()
            if written.endswith("="):
                end_of_expression = start + len(written)
            self.found.insert(place, Field(start, at + 1, start + 1, end_of_expression, nested))
        return at + 1

    def _format(self, at: int) -> int:
        while self.text[at] != "}":
            at = self._field(at, nested=True) if self.text[at] == "{" else at + 1
        return at

    def _expression(self, at: int) -> int:
        depth = 0
        while True:
            character = self.text[at]
            if depth == 0 and (character in ":}" or (character == "!" and self.text[at + 1] != "=")):
                return at
            if character in "'\"":
                at = self.literal(self._prefix_start(at))
                continue
            if character == "#":
                at = self.text.index("\n", at)
            depth += (character in "([{") - (character in ")]}")
            at += 1

    def _prefix_start(self, quote: int) -> int:
        start = quote
        while self.text[start - 1].isalpha():
            start -= 1
        # In `1 if'a'else 2` the letters before the quote are no prefix.
        return start if self.text[start:quote].lower() in _PREFIXES else quote
