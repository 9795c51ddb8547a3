"""From a source text to the spans of every concept."""

from __future__ import annotations

from collections.abc import Iterator

from sae_pipeline.embedded.concepts.spans.catalogue import CATALOGUE
from sae_pipeline.embedded.concepts.spans.expressions import expression_marks
from sae_pipeline.embedded.concepts.spans.fragment import Span, fragments_of
from sae_pipeline.embedded.concepts.spans.lexical import Mark, layout_marks, lexical_marks
from sae_pipeline.embedded.concepts.spans.source import Normalised
from sae_pipeline.embedded.concepts.spans.statements import docstring_spans, statement_marks
from sae_pipeline.embedded.concepts.spans.uses import use_marks


def concept_spans(source: str) -> dict[str, list[Span]]:
    """Find every concept in a module's source text.

    Returns:
        For each concept of `CATALOGUE`, in its order, half-open spans [start, end) in characters of `source`: sorted,
        not empty and disjoint. Where spans of one concept nest (a loop in a loop) the outermost stands for all. The
        result is the same on every Python that parses the text.

    Raises:
        UnparsableSource: the running Python does not parse the text.
    """
    normalised = Normalised(source)
    found: dict[str, list[Span]] = {concept.name: [] for concept in CATALOGUE}
    for concept, start, end in _marks(normalised.text):
        found[concept].append((normalised.original(start), normalised.original(end)))
    return {concept: _outermost(spans) for concept, spans in found.items()}


def _marks(text: str) -> Iterator[Mark]:
    fragments = fragments_of(text)
    docstrings = docstring_spans(fragments[0])
    yield from (("docstring", start, end) for start, end in docstrings)
    yield from layout_marks(fragments[0].lexemes)
    yield from use_marks(fragments)
    for fragment in fragments:
        yield from lexical_marks(fragment, docstrings)
        for node, in_function in fragment.nodes:
            yield from expression_marks(node, fragment)
            yield from statement_marks(node, fragment, in_function=in_function)


def _outermost(spans: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for start, end in sorted(spans):
        if kept and start < kept[-1][1]:
            kept[-1] = kept[-1][0], max(kept[-1][1], end)
        else:
            kept.append((start, end))
    return kept
