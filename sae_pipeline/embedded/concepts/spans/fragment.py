"""A parsed piece of source: the whole text, or one expression in a replacement field of an f-string."""

from __future__ import annotations

import ast
import warnings
from bisect import bisect_left
from functools import cached_property
from itertools import accumulate

from sae_pipeline.embedded.concepts.spans.lexemes import LAYOUT, OPERATOR, Lexeme, lexemes_of
from sae_pipeline.embedded.concepts.spans.replacement_fields import Field, replacement_fields
from sae_pipeline.embedded.concepts.spans.source import Lines, UnparsableSource

Span = tuple[int, int]
Placed = ast.expr | ast.stmt | ast.arg | ast.keyword | ast.alias | ast.excepthandler
"""Nodes that know where they stand."""

_WITH_FIELDS = tuple(getattr(ast, name) for name in ("JoinedStr", "TemplateStr") if hasattr(ast, name))
_LEFT_OUT = (ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop, *_WITH_FIELDS)


class Fragment:
    """Tokens and tree of a piece of source, all positions counted in the whole (normalised) text.

    Attributes:
        lexemes: its tokens.
        tree: its syntax tree. The inside of f-strings is not to be read from it: Python 3.11 places it wrongly.
        depth: open brackets around it.
        depths: open brackets after each token.
    """

    def __init__(self, text: str, *, expression_at: int | None = None, depth: int = 0) -> None:
        """Parse a module, or an expression that begins at `expression_at` of the module, inside `depth` brackets.

        Raises:
            UnparsableSource: this Python does not parse the text.
        """
        if expression_at is None:
            mode, self._shift = "exec", 0
        else:
            # Brackets let an expression run over several lines.
            text, mode, self._shift = f"({text})", "eval", expression_at - 1
        self.tree = _parse(text, mode)
        self._lines = Lines(text)
        found = lexemes_of(text, self._lines)
        if expression_at is not None:
            found = [item for item in found if 0 < item.start < len(text) - 1]
        self.lexemes = [item._replace(start=item.start + self._shift, end=item.end + self._shift) for item in found]
        self.depth = depth
        self.depths = list(accumulate(map(_step, self.lexemes), initial=depth))[1:]

    @cached_property
    def fields(self) -> list[tuple[Field, int]]:
        """Replacement fields of its f-strings, and the open brackets around each."""
        return [
            (field.moved(lexeme.start), depth)
            for lexeme, depth in zip(self.lexemes, self.depths, strict=True)
            if lexeme.has_fields
            for field in replacement_fields(lexeme.text)
        ]

    @cached_property
    def nodes(self) -> list[tuple[ast.AST, bool]]:
        """Every node outside f-strings, and whether it stands in a function of this fragment."""
        found: list[tuple[ast.AST, bool]] = [(self.tree, False)]
        for node, in_function in found:  # grows while it is read
            in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            children = (child for child in ast.iter_child_nodes(node) if not isinstance(child, _LEFT_OUT))
            found += [(child, in_function) for child in children]
        return found

    def span(self, node: Placed) -> Span:
        """Half-open span of a node."""
        return self.start(node), self.end(node)

    def start(self, node: Placed) -> int:
        """First position of a node; for a decorated definition that of `def` or `class`."""
        return self._lines.at_bytes(node.lineno, node.col_offset) + self._shift

    def end(self, node: Placed) -> int:
        """Position after a node."""
        line, column = node.end_lineno, node.end_col_offset
        if line is None or column is None:
            raise ValueError(f"{node!r} has no end")
        return self._lines.at_bytes(line, column) + self._shift

    def body(self, statements: list[ast.stmt]) -> Span:
        """From the first statement, decorators included, to the end of the last."""
        first = statements[0]
        decorators = getattr(first, "decorator_list", [])
        return self.at_sign(decorators[0]) if decorators else self.start(first), self.end(statements[-1])

    def at_sign(self, decorator: ast.expr) -> int:
        """Where the `@` of a decorator stands; brackets may lie between."""
        i = self._index(self.start(decorator))
        while self._words[i].text != "@":
            i -= 1
        return self._words[i].start

    def word_at(self, start: int) -> Lexeme:
        """The token that begins at a position."""
        return self._words[self._index(start)]

    def word_before(self, end: int) -> Lexeme:
        """The last token that begins before a position."""
        return self._words[self._index(end) - 1]

    def word_after(self, start: int, keyword: str) -> Lexeme:
        """The token behind the first `keyword` at or after a position."""
        i = self._index(start)
        while self._words[i].text != keyword:
            i += 1
        return self._words[i + 1]

    def _index(self, start: int) -> int:
        return bisect_left(self._starts, start)

    @cached_property
    def _words(self) -> list[Lexeme]:
        return [lexeme for lexeme in self.lexemes if lexeme.kind not in LAYOUT]

    @cached_property
    def _starts(self) -> list[int]:
        return [word.start for word in self._words]


def fragments_of(text: str) -> list[Fragment]:
    """The whole text and every expression in its f-strings, at any depth; the whole text comes first.

    Raises:
        UnparsableSource: this Python does not parse the text.
    """
    found = [Fragment(text)]
    for fragment in found:  # grows while it is read
        for field, depth in fragment.fields:
            expression = text[field.expression_start : field.expression_end]
            found.append(Fragment(expression, expression_at=field.expression_start, depth=depth))
    return found


def _step(lexeme: Lexeme) -> int:
    if lexeme.kind != OPERATOR:
        return 0
    return (lexeme.text in "([{") - (lexeme.text in ")]}")


def _parse(text: str, mode: str) -> ast.AST:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # doubtful escapes are the document's business
        try:
            return ast.parse(text, mode=mode)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UnparsableSource(f"not a module of this Python: {error}") from error
