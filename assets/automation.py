"""Jobs: the assets a person runs together. A job's partitioned assets share one partitions definition."""

from __future__ import annotations

import dagster as dg

from assets.publishing import asset_key
from resources import StudyGraph
from sae_pipeline.study import probe_tasks

JOBS = {
    "build_dataset": ("tokens", "activations", "evaluation_set", "dataset"),
    "train": ("autoencoder",),
    "evaluate": ("codes", "champion"),
    "fit": ("evaluation_table", "scaling_laws", "report"),
}


def job_assets(graph: StudyGraph) -> dict[str, tuple[str, ...]]:
    """Assets of each job, in the order in which `sae-pipeline run` launches them."""
    metrics = tuple(f"eval_{name}" for name in graph.study.evaluation.metrics)
    probed = ("probe_set",) if probe_tasks(graph.study.evaluation.metrics) else ()
    return {
        **JOBS,
        "build_dataset": (*JOBS["build_dataset"], *probed),
        "evaluate": ("codes", *metrics, "champion"),
    }


def build_jobs(graph: StudyGraph) -> list[dg.UnresolvedAssetJobDefinition]:
    """The four jobs of a study."""
    return [
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(*(asset_key(graph, asset) for asset in assets)),
            description=_WHAT[name],
        )
        for name, assets in job_assets(graph).items()
    ]


_WHAT = {
    "build_dataset": "Text → tokens → activation shards → normalised dataset, and the evaluation set.",
    "train": "Train the autoencoders of one site; all keys of a range share one read of the activations.",
    "evaluate": "Encode the held-out tokens once per autoencoder, then every metric, then the champion.",
    "fit": "Evaluation tables, scaling laws, report.",
}
