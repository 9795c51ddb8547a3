"""Running a whole study in this process: the four jobs one after another, only where something is stale."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource

from assets.automation import job_assets
from assets.leases import close_dead_runs, lease
from assets.partitions import sync_autoencoders
from assets.ranges import Request, requests_for
from resources import StudyGraph
from sae_pipeline.store import Console, PipelineError

if TYPE_CHECKING:
    from sae_pipeline.planning.lineage import Node

_NO_RETRY = {"dagster/max_retries": "0"}  # a daemon on the same home must not take up what a person stopped here
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def prepare_instance(graph: StudyGraph, instance: dg.DagsterInstance | None = None) -> dg.DagsterInstance:
    """The persistent instance (or the given one) with the study's autoencoders as dynamic partitions.

    Runs whose process was killed are closed in it.
    """
    from sae_pipeline.planning.facts import autoencoder_keys

    instance = instance or dg.DagsterInstance.get()
    close_dead_runs(instance)
    sync_autoencoders(instance, graph.study.study, autoencoder_keys(graph.study, graph.root))
    return instance


def run_study(defs: dg.Definitions, graph: StudyGraph, instance: dg.DagsterInstance) -> str | None:
    """Materialise everything of a study that is stale, with progress on stderr.

    Args:
        defs: the code location of the study.
        graph: the study.
        instance: where runs are recorded; see `prepare_instance`.

    Returns:
        None, or what failed; what was published before it stays.

    Raises:
        PipelineError: something can be seen beforehand to go wrong; nothing was begun.
    """
    _preflight(graph)
    started, runs = time.monotonic(), 0
    for job, assets in job_assets(graph).items():
        for request in requests_for(instance, graph, graph.workspace.stale(assets)):
            runs += 1
            _say(f"{job}: {request}")
            failure = _launch(defs, instance, graph, job, request)
            if failure:
                return failure
    _say(f"finished in {time.monotonic() - started:.0f} s" if runs else "nothing has changed; nothing to do")
    return None


def backfill(defs: dg.Definitions, graph: StudyGraph, instance: dg.DagsterInstance, nodes: Sequence[Node]) -> list[str]:
    """Materialise nodes of one asset in this process; what exists is recorded again, not made again.

    Returns:
        What failed, one text per run; the other runs went on.

    Raises:
        PipelineError: what a node is made from has not been published, or something can be seen beforehand to go wrong;
            nothing was started.
    """
    _require_inputs(graph, nodes)
    _preflight(graph, [node for node in nodes if graph.workspace.find(node.name) is None])
    failures = []
    for request in requests_for(instance, graph, nodes):
        job = next(job for job, assets in job_assets(graph).items() if set(request.assets) <= set(assets))
        _say(f"{job}: {request}")
        failures.append(_launch(defs, instance, graph, job, request))
    return [failure for failure in failures if failure]


def _preflight(graph: StudyGraph, nodes: Sequence[Node] | None = None) -> None:
    from sae_pipeline.planning.preflight import preflight

    work, console = graph.workspace, Console("checking corpora")
    preflight(work.lineage, work.outputs, work.pointers, root=work.root, nodes=nodes, progress=console)


def _require_inputs(graph: StudyGraph, nodes: Sequence[Node]) -> None:
    work = graph.workspace
    wanted = dict.fromkeys(name for node in nodes if work.find(node.name) is None for name in node.inputs)
    missing = [name for name in wanted if work.find(name) is None]
    if missing:
        some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise PipelineError(f"not made yet, or stopped at a gate: {some}; make them with `sae-pipeline run` first")


def _launch(
    defs: dg.Definitions, instance: dg.DagsterInstance, graph: StudyGraph, job: str, request: Request
) -> str | None:
    """Execute a job over one request; returns what failed, or None.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM stopped it; what can be checkpointed was.
    """
    with lease(instance) as tags:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            asset_selection=request.selection(graph),
            tags=request.tags | tags | _NO_RETRY,
            run_config=_QUIET,
            raise_on_error=False,
        )
        if _interrupted(result):
            # Dagster calls a run that was not terminated through it failed, whatever interrupted it.
            run = next(iter(instance.get_runs(dg.RunsFilter(run_ids=[result.run_id]))))
            instance.report_run_canceled(run, "Stopped by a signal; the next run goes on from here.")
            raise KeyboardInterrupt
    if result.success:
        return None
    return "\n".join(_reasons(result)) or "the run failed; see it in the UI"


def _interrupted(result: dg.ExecuteInProcessResult) -> bool:
    failures = (event.step_failure_data for event in result.all_events if event.is_step_failure)
    return any(failure.error_source is ErrorSource.INTERRUPT for failure in failures)


def _reasons(result: dg.ExecuteInProcessResult) -> Iterator[str]:
    """What each failed step says: its own words if it failed on purpose, the traceback if something broke."""
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        failure, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
        cause = error.cause if error is not None and error.cause is not None else error
        if failure is not None and failure.description:
            yield failure.description
        elif cause is not None:
            yield f"{cause.message}{''.join(cause.stack)}"


def _say(text: str) -> None:
    print(f"── {text}", file=sys.stderr, flush=True)
