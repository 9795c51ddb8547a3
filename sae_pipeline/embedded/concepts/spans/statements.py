"""Concepts that one statement of the syntax tree decides."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from sae_pipeline.embedded.concepts.spans.fragment import Fragment, Span
from sae_pipeline.embedded.concepts.spans.lexical import Mark

Function = ast.FunctionDef | ast.AsyncFunctionDef
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

_WHOLE = {
    ast.Assert: "assert_statement",
    ast.AugAssign: "augmented_assignment",
    ast.Import: "import_line",
    ast.ImportFrom: "import_line",
    ast.Raise: "raise_statement",
    ast.Return: "return_statement",
}
"""Statements that are a concept from their first to their last character."""

_BODIES = {
    ast.For: "for_body",
    ast.AsyncFor: "for_body",
    ast.While: "while_body",
    ast.With: "with_body",
    ast.AsyncWith: "with_body",
    ast.Try: "try_body",
    ast.TryStar: "try_body",
    ast.ExceptHandler: "except_body",
    ast.If: "if_body",
    ast.ClassDef: "class_body",
    ast.FunctionDef: "function_body",
    ast.AsyncFunctionDef: "function_body",
}
"""Statements whose body is a concept."""


def statement_marks(node: ast.AST, fragment: Fragment, *, in_function: bool) -> Iterator[Mark]:
    """Marks that a node makes as a statement; `in_function`: it stands in the body of a function."""
    if type(node) in _WHOLE and isinstance(node, ast.stmt):
        yield _WHOLE[type(node)], *fragment.span(node)
    if type(node) in _BODIES:
        yield _BODIES[type(node)], *fragment.body(node.body)  # type: ignore[attr-defined]
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from _function(node, fragment, nested=in_function)
        case ast.ClassDef():
            yield from _class(node, fragment)
        case ast.ImportFrom():
            yield from _from_import(node, fragment)
        case ast.Assign():
            for target in node.targets:
                yield "assignment_target", *fragment.span(target)
        case ast.AnnAssign():
            yield "assignment_target", *fragment.span(node.target)
            yield "annotation", *fragment.span(node.annotation)
        case ast.If():
            yield "if_condition", *fragment.span(node.test)


def docstring_spans(fragment: Fragment) -> list[Span]:
    """Spans of the docstrings of module, classes and functions, sorted."""
    found = []
    for node, _ in fragment.nodes:
        if isinstance(node, _DOCUMENTED) and node.body:
            match node.body[0]:
                case ast.Expr(value=ast.Constant(value=str()) as text):
                    found.append(fragment.span(text))
    return sorted(found)


def _function(node: Function, fragment: Fragment, *, nested: bool) -> Iterator[Mark]:
    name = fragment.word_after(fragment.start(node), "def")
    yield "function_name", name.start, name.end
    if node.returns is not None:
        yield "annotation", *fragment.span(node.returns)
    if nested:
        yield "nested_function_body", *fragment.body(node.body)
    yield from _decorators(node, fragment)


def _class(node: ast.ClassDef, fragment: Fragment) -> Iterator[Mark]:
    name = fragment.word_after(fragment.start(node), "class")
    yield "class_name", name.start, name.end
    yield from _decorators(node, fragment)


def _decorators(node: Function | ast.ClassDef, fragment: Fragment) -> Iterator[Mark]:
    for decorator in node.decorator_list:
        yield "decorator", fragment.at_sign(decorator), fragment.end(decorator)


def _from_import(node: ast.ImportFrom, fragment: Fragment) -> Iterator[Mark]:
    for alias in node.names:
        if alias.name == "*":
            continue
        name = fragment.word_at(fragment.start(alias))
        yield "imported_name", name.start, name.end
