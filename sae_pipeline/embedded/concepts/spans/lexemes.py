"""Python's tokens with positions in characters, the same whichever Python runs: an f-string is one lexeme."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sae_pipeline.embedded.concepts.spans.source import Lines, UnparsableSource

NAME, NUMBER, STRING, OPERATOR, COMMENT = "name", "number", "string", "operator", "comment"
NEWLINE, INDENT, DEDENT = "newline", "indent", "dedent"
_ODD = "odd"  # a letter of an identifier that Python 3.11's tokenizer does not know

LAYOUT = frozenset({NEWLINE, INDENT, DEDENT})
"""Kinds that hold no text of their own."""

_KINDS = {
    tokenize.NAME: NAME,
    tokenize.NUMBER: NUMBER,
    tokenize.STRING: STRING,
    tokenize.OP: OPERATOR,
    tokenize.COMMENT: COMMENT,
    tokenize.NEWLINE: NEWLINE,
    tokenize.INDENT: INDENT,
    tokenize.DEDENT: DEDENT,
    tokenize.ERRORTOKEN: _ODD,
}
# From 3.12 on f-strings, and from 3.14 on t-strings, come in pieces.
_OPENING = {getattr(tokenize, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
_CLOSING = {getattr(tokenize, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}
_PREFIX = re.compile("[A-Za-z]*")


class Lexeme(NamedTuple):
    """A token: its kind, text, half-open span in characters, and the line that it begins on, counted from 1."""

    kind: str
    text: str
    start: int
    end: int
    line: int

    @property
    def prefix(self) -> str:
        """The letters before the quotes of a string, in lower case."""
        match = _PREFIX.match(self.text)
        return match.group().lower() if match else ""

    @property
    def has_fields(self) -> bool:
        """Whether it is a string with replacement fields."""
        return self.kind == STRING and ("f" in self.prefix or "t" in self.prefix)


def lexemes_of(text: str, lines: Lines) -> list[Lexeme]:
    """Split a text whose lines end in `\\n`.

    Raises:
        UnparsableSource: it has no tokens in this Python.
    """
    try:
        return list(_joined(_lexemes(text, lines)))
    except (tokenize.TokenError, SyntaxError) as error:
        raise UnparsableSource(f"not tokens of this Python: {error}") from error


def _joined(pieces: Iterable[Lexeme]) -> Iterator[Lexeme]:
    """Identifiers whole, where Python 3.11's tokenizer breaks them at odd letters."""
    before: Lexeme | None = None
    for piece in pieces:
        if piece.kind == _ODD and piece.text.isspace():
            continue  # the blank before an odd letter
        if before is not None and _continues(before, piece):
            before = Lexeme(_ODD, before.text + piece.text, before.start, piece.end, before.line)
            continue
        if before is not None:
            yield before if before.kind != _ODD else before._replace(kind=NAME)
        before = piece
    if before is not None:
        yield before


def _continues(before: Lexeme, piece: Lexeme) -> bool:
    touching = before.end == piece.start and before.kind in (NAME, _ODD) and piece.kind in (NAME, NUMBER, _ODD)
    return touching and _ODD in (before.kind, piece.kind)


def _lexemes(text: str, lines: Lines) -> Iterator[Lexeme]:
    depth, opened_at, opened_line = 0, 0, 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _OPENING:
            if depth == 0:
                opened_at, opened_line = lines.at(*token.start), token.start[0]
            depth += 1
        elif token.type in _CLOSING:
            depth -= 1
            if depth == 0:
                end = lines.at(*token.end)
                yield Lexeme(STRING, text[opened_at:end], opened_at, end, opened_line)
        elif depth == 0 and token.type in _KINDS:
            yield Lexeme(_KINDS[token.type], token.string, lines.at(*token.start), lines.at(*token.end), token.start[0])
