"""Running a whole study in this process: the four jobs one after another, only where something is stale."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from assets.automation import job_assets
from assets.partitions import dynamic_set, partition_key, sync_autoencoders
from assets.publishing import asset_key
from resources import StudyGraph

if TYPE_CHECKING:
    from sae_pipeline.planning.lineage import Node

_RANGE_START, _RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def prepare_instance(graph: StudyGraph, instance: dg.DagsterInstance | None = None) -> dg.DagsterInstance:
    """The persistent instance (or the given one) with the study's autoencoders as dynamic partitions."""
    from sae_pipeline.planning.facts import autoencoder_keys

    instance = instance or dg.DagsterInstance.get()
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
    """
    from sae_pipeline.planning.staleness import stale

    workspace = graph.workspace
    started, runs = time.monotonic(), 0
    for job, assets in job_assets(graph).items():
        waiting = [
            node for node in stale(workspace.lineage, workspace.outputs, workspace.pointers) if node.asset in assets
        ]
        for group in _one_range_each(waiting):
            runs += 1
            _say(f"{job}: {_count(group)}")
            failure = _launch(defs, instance, graph, job, group)
            if failure:
                return failure
    _say(f"finished in {time.monotonic() - started:.0f} s" if runs else "nothing has changed; nothing to do")
    return None


def _one_range_each(nodes: Sequence[Node]) -> list[list[Node]]:
    """One run for what is partitioned by site alone, one per site for what is partitioned by autoencoder."""
    by_site: dict[str, list[Node]] = {}
    shared: list[Node] = []
    for node in nodes:
        parts = node.name.split("/")
        (by_site.setdefault(parts[1], []) if len(parts) == 3 else shared).append(node)
    return [group for group in (shared, *by_site.values()) if group]


def _launch(
    defs: dg.Definitions, instance: dg.DagsterInstance, graph: StudyGraph, job: str, nodes: Sequence[Node]
) -> str | None:
    """Execute a job over the range of its stale partitions; returns what failed, or None."""
    selection = sorted({asset_key(graph, node.asset) for node in nodes})
    result = defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        asset_selection=selection,
        tags=_range_tags(instance, graph, nodes),
        run_config=_QUIET,
        raise_on_error=False,
    )
    if result.success:
        return None
    return "\n".join(_reasons(result)) or "the run failed; see it in the UI"


def _range_tags(instance: dg.DagsterInstance, graph: StudyGraph, nodes: Iterable[Node]) -> dict[str, str]:
    """Tags of a range run from the first to the last stale partition, in the order in which Dagster keeps them."""
    autoencoders = list(instance.get_dynamic_partitions(dynamic_set(graph.study.study)))
    paths = {node.name.partition("/")[2] for node in nodes} - {""}

    def place(path: str) -> int:
        site, _, autoencoder = path.partition("/")
        return autoencoders.index(autoencoder) if autoencoder else graph.sites.index(site)

    if not paths:
        return {}
    first, last = min(paths, key=place), max(paths, key=place)
    return {_RANGE_START: partition_key(first), _RANGE_END: partition_key(last)}


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


def _count(nodes: Sequence[Node]) -> str:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.asset] = counts.get(node.asset, 0) + 1
    return ", ".join(f"{asset} × {count}" if count > 1 else asset for asset, count in counts.items())


def _say(text: str) -> None:
    print(f"── {text}", file=sys.stderr, flush=True)
