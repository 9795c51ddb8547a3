"""Concepts of names that something elsewhere in the file decides: a parameter list, an import."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from sae_pipeline.embedded.concepts.spans.expressions import parameters
from sae_pipeline.embedded.concepts.spans.fragment import Fragment, Span
from sae_pipeline.embedded.concepts.spans.lexical import Mark

_CONVENTIONS = frozenset({"self", "cls"})
_Scope = tuple[Span, frozenset[str]]


def use_marks(fragments: Sequence[Fragment]) -> Iterator[Mark]:
    """Marks of names in use, from all fragments of a file."""
    names: list[tuple[Span, str]] = []
    scopes: list[_Scope] = []
    imported: set[str] = set()
    for fragment in fragments:
        for node, _ in fragment.nodes:
            match node:
                case ast.Name():
                    names.append((fragment.span(node), node.id))
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    scopes.append((fragment.body(node.body), _own(node.args)))
                case ast.Lambda():
                    scopes.append((fragment.span(node.body), _own(node.args)))
                case ast.Import() | ast.ImportFrom():
                    imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    for span, name in names:
        if name in imported:
            yield "imported_use", *span
    yield from _parameter_uses(sorted(names), sorted(scopes, key=_outermost_first))


def _parameter_uses(names: Sequence[tuple[Span, str]], scopes: Sequence[_Scope]) -> Iterator[Mark]:
    """Names that are parameters of the innermost function around them; both arguments in the order of the text."""
    around: list[_Scope] = []
    coming = iter([*scopes, None])
    scope = next(coming)
    for span, name in names:
        while scope is not None and scope[0][0] <= span[0]:
            around = [*(outer for outer in around if outer[0][1] > scope[0][0]), scope]
            scope = next(coming)
        inner = next((own for (_, end), own in reversed(around) if span[0] < end), frozenset())
        if name in inner:
            yield "parameter_use", *span


def _outermost_first(scope: _Scope) -> Span:
    (start, end), _ = scope
    return start, -end


def _own(arguments: ast.arguments) -> frozenset[str]:
    return frozenset(parameter.arg for parameter in parameters(arguments)) - _CONVENTIONS
