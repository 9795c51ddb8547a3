"""Concepts of Python source: where in a text each of them stands. Standard library only."""

from sae_pipeline.embedded.concepts.spans.catalogue import CATALOGUE, Concept
from sae_pipeline.embedded.concepts.spans.concept_spans import concept_spans
from sae_pipeline.embedded.concepts.spans.source import UnparsableSource

__all__ = ["CATALOGUE", "Concept", "UnparsableSource", "concept_spans"]
