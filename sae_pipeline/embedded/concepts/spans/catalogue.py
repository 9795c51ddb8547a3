"""The concepts: what each of them is, in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """A property that every character of a Python source text has or has not.

    Attributes:
        name: its name, lower case with underscores.
        description: what has the property.
        long_range: what decides may lie far before, so a model needs a long context to know.
    """

    name: str
    description: str
    long_range: bool = False


CATALOGUE = (
    Concept("comment", "comments, with their #"),
    Concept("docstring", "docstrings of modules, classes and functions, with their quotes", long_range=True),
    Concept("string", "string and bytes literals, but neither docstrings nor f-strings"),
    Concept("multiline_string", "literals that run over lines, but no docstrings", long_range=True),
    Concept("prefixed_string", "string literals with a prefix that makes them raw or bytes"),
    Concept("f_string", "f-strings"),
    Concept("f_string_field", "replacement fields of f-strings, with their braces"),
    Concept("number", "number literals"),
    Concept("singleton", "None, True and False"),
    Concept("keyword", "keywords but for None, True and False; match, case and type are none"),
    Concept("operator", "operators and assignment signs; no brackets, no . , : ; -> and no ellipsis"),
    Concept("line_start", "the first token of a logical line, unless it is a string"),
    Concept("continuation_line", "the rest of a logical line from its first token on a later line than its start"),
    Concept("bracket_depth_3", "what stands in three or more brackets, the innermost brackets included"),
    Concept("indent_depth_3", "logical lines that are indented three or more times", long_range=True),
    Concept("self", "the name self"),
    Concept("snake_case", "identifiers of lower-case words joined by underscores"),
    Concept("camel_case", "identifiers that begin with a capital, have a small letter and no underscore"),
    Concept("upper_case", "identifiers of two or more capitals, digits and underscores"),
    Concept("dunder", "identifiers that begin and end with two underscores"),
    Concept("builtin_name", "variables named like a built-in function or type"),
    Concept("exception_name", "variables named like a built-in exception or warning"),
    Concept("function_name", "the name in a function's definition"),
    Concept("class_name", "the name in a class's definition"),
    Concept("parameter", "names of parameters where a function or lambda lists them"),
    Concept("default_value", "default values of parameters"),
    Concept("annotation", "annotations of parameters, variables and results"),
    Concept("decorator", "decorators, with their @"),
    Concept("import_line", "import statements"),
    Concept("imported_name", "names that a from-import takes, not their aliases"),
    Concept("imported_use", "variables named like something that an import of the file binds", long_range=True),
    Concept("parameter_use", "variables that the innermost function has as parameter; not self, cls", long_range=True),
    Concept("attribute", "names behind a dot in expressions"),
    Concept("called_attribute", "names behind a dot of what is called"),
    Concept("keyword_argument", "names of keyword arguments in calls"),
    Concept("call_argument", "positional arguments of calls"),
    Concept("subscript", "what stands in the brackets of a subscript"),
    Concept("slice", "slices with a colon"),
    Concept("starred", "starred expressions, and double-starred arguments of calls"),
    Concept("dict_key", "keys in dict displays"),
    Concept("dict_value", "values in dict displays, but for unpacked ones"),
    Concept("comparison", "comparisons, with their operands"),
    Concept("boolean_operation", "operations with and, or, with their operands"),
    Concept("binary_operation", "operations with a binary arithmetic or bitwise operator, with their operands"),
    Concept("comprehension", "comprehensions and generator expressions, with their brackets"),
    Concept("lambda", "lambda expressions"),
    Concept("assignment_target", "targets of assignments with = or :=, annotated ones too"),
    Concept("augmented_assignment", "augmented assignments, the whole statement"),
    Concept("if_condition", "conditions of if and elif statements"),
    Concept("return_statement", "return statements"),
    Concept("raise_statement", "raise statements"),
    Concept("assert_statement", "assert statements"),
    Concept("if_body", "bodies of if and elif, but not of else", long_range=True),
    Concept("for_body", "bodies of for loops, but not their else", long_range=True),
    Concept("while_body", "bodies of while loops, but not their else", long_range=True),
    Concept("try_body", "bodies of try, but not of except, else, finally", long_range=True),
    Concept("except_body", "bodies of except", long_range=True),
    Concept("with_body", "bodies of with", long_range=True),
    Concept("class_body", "bodies of classes", long_range=True),
    Concept("function_body", "bodies of functions", long_range=True),
    Concept("nested_function_body", "bodies of functions defined inside functions", long_range=True),
)
"""All concepts. Where two agree too much, `build_probe_set` keeps the one that comes first.

A span ends with the last token of what it describes: comments behind the last statement of a body do not belong to it,
nor do brackets around an expression, which the syntax tree does not hold.
"""
