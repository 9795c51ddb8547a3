"""Concepts that the tokens alone decide."""

from __future__ import annotations

import keyword
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from sae_pipeline.embedded.concepts.spans.fragment import Fragment, Span
from sae_pipeline.embedded.concepts.spans.lexemes import (
    COMMENT,
    DEDENT,
    INDENT,
    LAYOUT,
    NAME,
    NEWLINE,
    NUMBER,
    OPERATOR,
    STRING,
    Lexeme,
)

Mark = tuple[str, int, int]
"""A concept and the half-open span of one of its places."""

DEEP = 3

_SINGLETONS = frozenset({"None", "True", "False"})
_NO_OPERATORS = frozenset("()[]{},.:;") | {"...", "->"}
_STYLES = {
    "dunder": re.compile(r"__\w+__"),
    "upper_case": re.compile(r"[A-Z][A-Z0-9_]+"),
    "snake_case": re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+"),
    "camel_case": re.compile(r"(?=.*[a-z])[A-Z][A-Za-z0-9]+"),
    "self": re.compile("self"),
}


def lexical_marks(fragment: Fragment, docstrings: Sequence[Span]) -> Iterator[Mark]:
    """Marks of the lexical concepts; `docstrings` are the sorted spans of the file's docstrings."""
    starts = [start for start, _ in docstrings]
    for lexeme in fragment.lexemes:
        if lexeme.kind == NAME:
            yield from _name(lexeme)
        elif lexeme.kind == STRING:
            i = bisect_right(starts, lexeme.start) - 1
            yield from _string(lexeme, documents=i >= 0 and lexeme.start < docstrings[i][1])
        elif lexeme.kind == NUMBER:
            yield "number", lexeme.start, lexeme.end
        elif lexeme.kind == OPERATOR and lexeme.text not in _NO_OPERATORS:
            yield "operator", lexeme.start, lexeme.end
        elif lexeme.kind == COMMENT:
            yield "comment", lexeme.start, lexeme.end
    yield from _fields(fragment)
    yield from _deep_brackets(fragment)


def _name(lexeme: Lexeme) -> Iterator[Mark]:
    if lexeme.text in _SINGLETONS:
        yield "singleton", lexeme.start, lexeme.end
    elif keyword.iskeyword(lexeme.text):
        yield "keyword", lexeme.start, lexeme.end
    else:
        for concept, style in _STYLES.items():
            if style.fullmatch(lexeme.text):
                yield concept, lexeme.start, lexeme.end


def _string(lexeme: Lexeme, *, documents: bool) -> Iterator[Mark]:
    span = lexeme.start, lexeme.end
    if {*"rb"} & {*lexeme.prefix}:
        yield "prefixed_string", *span
    if "f" in lexeme.prefix:
        yield "f_string", *span
    elif not documents:
        yield "string", *span
    if "\n" in lexeme.text and not documents:
        yield "multiline_string", *span


def _fields(fragment: Fragment) -> Iterator[Mark]:
    for field, _ in fragment.fields:
        yield "f_string_field", field.start, field.end


def _deep_brackets(fragment: Fragment) -> Iterator[Mark]:
    """What stands in at least three brackets, from the bracket that makes it three to the one that ends it."""
    opened_at: int | None = None
    before = fragment.depth
    for lexeme, depth in zip(fragment.lexemes, fragment.depths, strict=True):
        if before < DEEP <= depth:
            opened_at = lexeme.start
        elif depth < DEEP <= before and opened_at is not None:
            yield "bracket_depth_3", opened_at, lexeme.end
        before = depth


def layout_marks(lexemes: Sequence[Lexeme]) -> Iterator[Mark]:
    """Marks of the concepts that depend on lines and indentation, from all tokens of a module."""
    depth, line = 0, list[Lexeme]()
    for lexeme in lexemes:
        depth += (lexeme.kind == INDENT) - (lexeme.kind == DEDENT)
        if lexeme.kind == NEWLINE:
            yield from _line(line, depth)
            line = []
        elif lexeme.kind not in LAYOUT and (line or lexeme.kind != COMMENT):
            line.append(lexeme)


def _line(line: Sequence[Lexeme], depth: int) -> Iterator[Mark]:
    """Marks of one logical line."""
    first, last = line[0], line[-1]
    if first.kind != STRING:
        yield "line_start", first.start, first.end
    if depth >= DEEP:
        yield "indent_depth_3", first.start, last.end
    later = next((lexeme for lexeme in line if lexeme.line > first.line), None)
    if later is not None:
        yield "continuation_line", later.start, last.end
