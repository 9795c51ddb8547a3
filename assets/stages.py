"""All stages of a study, inputs first."""

from __future__ import annotations

from assets.activations import ACTIVATIONS, EVALUATION_SET
from assets.autoencoders import AUTOENCODER
from assets.dataset import DATASET
from assets.evaluation import CHAMPION, CODES, metric_stage, table_stage
from assets.probes import PROBE_SET
from assets.publishing import Stage
from assets.scaling import REPORT, SCALING_LAWS
from assets.tokens import TOKENS
from resources import StudyGraph
from sae_pipeline.study import probe_tasks


def stages_of(graph: StudyGraph) -> list[Stage]:
    """The stages of a study: the fixed ones and one per metric it names."""
    metrics = [metric_stage(name) for name in graph.study.evaluation.metrics]
    table = table_stage(tuple(metric.asset for metric in metrics))
    probed = [PROBE_SET] if probe_tasks(graph.study.evaluation.metrics) else []
    data = [TOKENS, ACTIVATIONS, EVALUATION_SET, *probed, DATASET]
    return [*data, AUTOENCODER, CODES, *metrics, CHAMPION, table, SCALING_LAWS, REPORT]
