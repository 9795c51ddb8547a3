"""Probe tasks whose labels are exact: concepts of source text, and rows of tokens that have them or not.

`spans` finds the concepts, with the standard library only; `labels` hands them to tokens; `build` and `text_tasks` make
probe sets of source text and of labelled lines; `controls` says what a probe of them is to be held against.
"""

from sae_pipeline.embedded.concepts.build import build_probe_set
from sae_pipeline.embedded.concepts.probe_set import TEST, TRAIN, Dropped, ProbeSet, Task
from sae_pipeline.embedded.concepts.sampling import Sampling
from sae_pipeline.embedded.concepts.shipped import by_card
from sae_pipeline.embedded.concepts.spans import CATALOGUE, Concept, UnparsableSource, concept_spans
from sae_pipeline.embedded.concepts.text_tasks import TextTask, TextTaskError, read_text_tasks, text_probe_set

__all__ = [
    "CATALOGUE",
    "TEST",
    "TRAIN",
    "Concept",
    "Dropped",
    "ProbeSet",
    "Sampling",
    "Task",
    "TextTask",
    "TextTaskError",
    "UnparsableSource",
    "build_probe_set",
    "by_card",
    "concept_spans",
    "read_text_tasks",
    "text_probe_set",
]
