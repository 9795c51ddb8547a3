"""Sensors: the study file and the corpora are watched, so that what changes on disk shows in Dagster."""

import dagster as dg

from assets.automation import job_assets
from assets.partitions import dynamic_set
from assets.ranges import requests_for
from resources import StudyGraph

STUDY_EVERY_S, CORPORA_EVERY_S = 30, 300


def follow_study(graph: StudyGraph) -> dg.SensorDefinition:
    """Keep the dynamic partitions equal to the autoencoders that the study file names; launches nothing."""

    @dg.sensor(
        name="follow_study",
        minimum_interval_seconds=STUDY_EVERY_S,
        description="An autoencoder added to the study file becomes a partition; one taken out leaves.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return study_changes(graph, context.instance)

    return sensor


def study_changes(graph: StudyGraph, instance: dg.DagsterInstance) -> dg.SensorResult:
    """What the study file now asks for that the partitions do not have, and the other way round."""
    from sae_pipeline.planning.facts import autoencoder_keys

    now = graph.reload()
    if now.sites != graph.sites:
        return dg.SensorResult(skip_reason="the study's sites changed: reload the code location to see them")
    definition = dg.DynamicPartitionsDefinition(name=dynamic_set(graph.study.study))
    wanted, present = autoencoder_keys(now.study, now.root), instance.get_dynamic_partitions(definition.name or "")
    added = [key for key in wanted if key not in present]
    removed = [key for key in present if key not in wanted]
    if not (added or removed):
        return dg.SensorResult(skip_reason=f"{len(wanted)} autoencoders, as before")
    requests = [definition.build_add_request(added), definition.build_delete_request(removed)]
    return dg.SensorResult(dynamic_partitions_requests=[request for request in requests if request.partition_keys])


def follow_corpora(graph: StudyGraph, build_dataset: "dg.UnresolvedAssetJobDefinition") -> dg.SensorDefinition:
    """Rebuild the dataset when the text of a corpus changed; trains nothing."""

    @dg.sensor(
        name="follow_corpora",
        job=build_dataset,
        minimum_interval_seconds=CORPORA_EVERY_S,
        description="Text added to a corpus: new tokens, the new shards, a new version of the dataset.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return corpora_changes(graph, context.instance)

    return sensor


def corpora_changes(graph: StudyGraph, instance: dg.DagsterInstance) -> dg.SensorResult:
    """The runs of `build_dataset` that changed text asks for, requested once per change."""
    workspace = graph.reload().workspace
    tokens, waiting = workspace.lineage["tokens"], workspace.stale(job_assets(graph)["build_dataset"])
    if tokens not in waiting:
        return dg.SensorResult(skip_reason="the corpora are as they were")
    change = f"{workspace.pointers.get('tokens')} to {tokens.identity}"  # going back to earlier text is a change too
    runs = [
        dg.RunRequest(run_key=f"{change}, {number}", asset_selection=request.selection(graph), tags=request.tags)
        for number, request in enumerate(requests_for(instance, graph, waiting))
    ]
    return dg.SensorResult(run_requests=runs)
