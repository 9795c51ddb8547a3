"""Activations: the subject's activations on the training split, and the evaluation set on the held-out one."""

from sae_pipeline.activations.audit import audit_evaluation_set, audit_frame, summarise_shards
from sae_pipeline.activations.errors import ActivationError, ActivationOverflow
from sae_pipeline.activations.evaluation_builder import build_evaluation_set
from sae_pipeline.activations.evaluation_set import EvaluationSet
from sae_pipeline.activations.harvesting import harvest
from sae_pipeline.activations.layout import ACTS, contexts_for_rows, covering_shards, open_activations, shard_rows_of
from sae_pipeline.activations.micro_batch import MicroBatch
from sae_pipeline.activations.moments import Moments
from sae_pipeline.activations.scoring import clean_scores, spliced_scores
from sae_pipeline.activations.takeover import Earlier, taken_over
from sae_pipeline.activations.window import Window, pinned_shards
from sae_pipeline.activations.worker import Place, harvest_range

__all__ = [
    "ACTS",
    "ActivationError",
    "ActivationOverflow",
    "Earlier",
    "EvaluationSet",
    "MicroBatch",
    "Moments",
    "Place",
    "Window",
    "audit_evaluation_set",
    "audit_frame",
    "build_evaluation_set",
    "clean_scores",
    "contexts_for_rows",
    "covering_shards",
    "harvest",
    "harvest_range",
    "open_activations",
    "pinned_shards",
    "shard_rows_of",
    "spliced_scores",
    "summarise_shards",
    "taken_over",
]
