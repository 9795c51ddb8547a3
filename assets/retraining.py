"""The schedule `retrain_stale`: at its time everything stale is requested, one job after the other."""

from collections.abc import Iterator, Sequence

import dagster as dg

from assets.automation import job_assets
from assets.ranges import requests_for
from resources import StudyGraph

WEEKLY = "0 3 * * 1"
TICK = "sae-pipeline/retrain"  # tag of all runs that one tick set off
_WAITING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def retrain_job() -> dg.JobDefinition:
    """The job of the schedule: writes down what is stale. The runs that follow are requested by `continue_retrain`.

    A schedule belongs to one job, and a job's assets to one partitions definition, so that no single job could make
    datasets, autoencoders and fits.
    """

    @dg.op(name="list_stale")
    def list_stale(context: dg.OpExecutionContext, study: dg.ResourceParam[StudyGraph]) -> None:
        names = [node.name for node in study.reload().workspace.stale()]
        context.log.info(f"{len(names)} stale: {', '.join(names)}" if names else "nothing is stale")

    @dg.job(name="retrain_stale", description="Everything that is stale, one job after the other; nothing else.")
    def retrain_stale() -> None:
        list_stale()

    return retrain_stale


def retrain_schedule(graph: StudyGraph, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Weekly, or when the study's `retrain.when.schedule` says; off until it is turned on."""
    given = graph.study.retrain.when.schedule if graph.study.retrain else None

    @dg.schedule(name="retrain_stale", job=job, cron_schedule=given or WEEKLY)
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        tick = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(run_key=tick, tags={TICK: tick})

    return schedule


def continue_retrain(
    graph: StudyGraph, start: dg.JobDefinition, jobs: "Sequence[dg.UnresolvedAssetJobDefinition]"
) -> dg.SensorDefinition:
    """After each success of a tick's runs: the next job that has stale nodes. A failure ends the tick."""

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="continue_retrain",
        monitored_jobs=[start, *jobs],
        request_jobs=list(jobs),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=5,
        description="Carries a tick of retrain_stale from job to job; knows only runs that it set off.",
    )
    def sensor(context: dg.RunStatusSensorContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        tick = context.dagster_run.tags.get(TICK)
        if tick is None and context.dagster_run.job_name == start.name:
            tick = context.dagster_run.run_id  # launched by hand
        if tick is None:
            yield dg.SkipReason("not set off by retrain_stale")
        elif context.instance.get_runs(dg.RunsFilter(tags={TICK: tick}, statuses=_WAITING)):
            yield dg.SkipReason("other runs of this tick are not done")
        else:
            yield from next_runs(graph, context.instance, tick)

    return sensor


def next_runs(graph: StudyGraph, instance: dg.DagsterInstance, tick: str) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """The runs of the first job with stale nodes; each is requested once a tick, so a failed one is not repeated."""
    workspace = graph.reload().workspace
    for job, assets in job_assets(graph).items():
        nodes = workspace.stale(assets)
        for number, request in enumerate(requests_for(instance, graph, nodes)):
            yield dg.RunRequest(
                run_key=f"{tick}:{job}:{number}",
                job_name=job,
                asset_selection=request.selection(graph),
                tags={**request.tags, TICK: tick},
            )
        if nodes:
            return
    yield dg.SkipReason("nothing is stale")
