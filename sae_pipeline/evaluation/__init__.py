"""Evaluation: codes encoded once, one file per metric, tables with an interval on every figure."""

from typing import Final

from sae_pipeline.evaluation import (
    ablation,
    antipodal,
    concentration,
    context_length,
    density,
    downstream,
    examples,
    explanations,
    probes,
    progressive,
    reconstruction,
    shrinkage,
    stability,
)
from sae_pipeline.evaluation.audit import audit_codes, audit_metric
from sae_pipeline.evaluation.bootstrap import Comparison, compare_paired
from sae_pipeline.evaluation.champion import challenge
from sae_pipeline.evaluation.codes_cache import CodesCache, build_codes
from sae_pipeline.evaluation.controls import beside
from sae_pipeline.evaluation.errors import CacheMismatch, EvaluationError
from sae_pipeline.evaluation.ground_truth import GroundTruth, compare_with_planted
from sae_pipeline.evaluation.inputs import Metric, MetricInputs
from sae_pipeline.evaluation.monosemanticity import (
    ClassPurity,
    Monosemanticity,
    Purity,
    class_purity,
    monosemanticity_scores,
)
from sae_pipeline.evaluation.site_table import audit_table, read_tables, write_table
from sae_pipeline.evaluation.stability_pair import Stability, compare_latents
from sae_pipeline.evaluation.tables import MetricResult, build_table, read_metric, write_metric

METRICS: Final[dict[str, Metric]] = {
    module.METRIC.name: module.METRIC
    for module in (
        reconstruction,
        density,
        downstream,
        progressive,
        concentration,
        shrinkage,
        ablation,
        probes,
        explanations,
        examples,
        antipodal,
        stability,
        context_length,
    )
}
"""Every metric by name; each is one file of this room."""

__all__ = [
    "METRICS",
    "CacheMismatch",
    "ClassPurity",
    "CodesCache",
    "Comparison",
    "EvaluationError",
    "GroundTruth",
    "Metric",
    "MetricInputs",
    "MetricResult",
    "Monosemanticity",
    "Purity",
    "Stability",
    "audit_codes",
    "audit_metric",
    "audit_table",
    "beside",
    "build_codes",
    "build_table",
    "challenge",
    "class_purity",
    "compare_latents",
    "compare_paired",
    "compare_with_planted",
    "monosemanticity_scores",
    "read_metric",
    "read_tables",
    "write_metric",
    "write_table",
]
