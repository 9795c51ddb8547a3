"""Concepts that one expression of the syntax tree decides."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from sae_pipeline.embedded.concepts.spans.fragment import Fragment
from sae_pipeline.embedded.concepts.spans.lexical import Mark
from sae_pipeline.embedded.concepts.spans.vocabulary import BUILTINS, EXCEPTIONS

_WHOLE = {
    ast.BinOp: "binary_operation",
    ast.BoolOp: "boolean_operation",
    ast.Compare: "comparison",
    ast.Lambda: "lambda",
    ast.ListComp: "comprehension",
    ast.SetComp: "comprehension",
    ast.DictComp: "comprehension",
    ast.GeneratorExp: "comprehension",
    ast.Slice: "slice",
    ast.Starred: "starred",
}
"""Expressions that are a concept from their first to their last character."""


def expression_marks(node: ast.AST, fragment: Fragment) -> Iterator[Mark]:
    """Marks that a node makes as an expression, and not as a part of another."""
    if type(node) in _WHOLE and isinstance(node, ast.expr):
        yield _WHOLE[type(node)], *fragment.span(node)
    match node:
        case ast.Name():
            yield from _name(node, fragment)
        case ast.Attribute():
            yield from _attribute(node, fragment)
        case ast.Call():
            yield from _call(node, fragment)
        case ast.Subscript():
            yield "subscript", *fragment.span(node.slice)
        case ast.Dict():
            yield from _dict(node, fragment)
        case ast.NamedExpr():
            yield "assignment_target", *fragment.span(node.target)
        case ast.arguments():
            yield from _arguments(node, fragment)


def _name(node: ast.Name, fragment: Fragment) -> Iterator[Mark]:
    if node.id in BUILTINS:
        yield "builtin_name", *fragment.span(node)
    if node.id in EXCEPTIONS:
        yield "exception_name", *fragment.span(node)


def _attribute(node: ast.Attribute, fragment: Fragment) -> Iterator[Mark]:
    name = fragment.word_before(fragment.end(node))
    yield "attribute", name.start, name.end


def _call(node: ast.Call, fragment: Fragment) -> Iterator[Mark]:
    if isinstance(node.func, ast.Attribute):
        name = fragment.word_before(fragment.end(node.func))
        yield "called_attribute", name.start, name.end
    for argument in node.args:
        yield "call_argument", *fragment.span(argument)
    for item in node.keywords:
        if item.arg is None:
            yield "starred", *fragment.span(item)
        else:
            name = fragment.word_at(fragment.start(item))
            yield "keyword_argument", name.start, name.end


def _dict(node: ast.Dict, fragment: Fragment) -> Iterator[Mark]:
    for key, value in zip(node.keys, node.values, strict=True):
        if key is not None:
            yield "dict_key", *fragment.span(key)
            yield "dict_value", *fragment.span(value)


def _arguments(node: ast.arguments, fragment: Fragment) -> Iterator[Mark]:
    """Parameters of a function or a lambda."""
    for parameter in parameters(node):
        name = fragment.word_at(fragment.start(parameter))
        yield "parameter", name.start, name.end
        if parameter.annotation is not None:
            yield "annotation", *fragment.span(parameter.annotation)
    for default in (*node.defaults, *node.kw_defaults):
        if default is not None:
            yield "default_value", *fragment.span(default)


def parameters(node: ast.arguments) -> list[ast.arg]:
    """All parameters, starred ones too."""
    named = [*node.posonlyargs, *node.args, *node.kwonlyargs]
    return [*named, *(starred for starred in (node.vararg, node.kwarg) if starred is not None)]
