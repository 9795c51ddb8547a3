"""What a Dagster home knows without being changed: a study's last run, and whether a daemon is at work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from assets.publishing import asset_key
from resources import StudyGraph
from sae_pipeline.doctor.check import Check

if TYPE_CHECKING:
    from sae_pipeline.planning.status import LastRun

_LOOK_BACK = 50  # runs of other studies that may have come since
_ALIVE_S = 120.0  # a daemon beats twice a minute


@contextmanager
def existing_instance() -> Iterator[dg.DagsterInstance | None]:
    """The instance of `DAGSTER_HOME`, or None where no home has been made yet."""
    if not (Path(os.environ["DAGSTER_HOME"]) / "dagster.yaml").is_file():
        yield None
        return
    with dg.DagsterInstance.get() as instance:
        yield instance


def last_run(instance: dg.DagsterInstance, graph: StudyGraph) -> LastRun | None:
    """The newest run that made something of the study, or None if there is none among the last 50 runs."""
    from sae_pipeline.planning.status import LastRun

    prefix = asset_key(graph, "any").path[0]
    for record in instance.get_run_records(limit=_LOOK_BACK):
        run = record.dagster_run
        if _prefix(instance, run) == prefix:
            failure = _failure(instance, run) if run.status == dg.DagsterRunStatus.FAILURE else None
            return LastRun(run.run_id, run.job_name, run.status.value, record.start_time, record.end_time, failure)
    return None


def _prefix(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """First part of the keys of a run's assets: the study. A job launched as a whole selects none, but plans them."""
    if run.asset_selection:
        return next(iter(run.asset_selection)).path[0]
    planned = instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, limit=1
    ).records
    event = planned[0].event_log_entry.dagster_event if planned else None
    return event.asset_key.path[0] if event is not None and event.asset_key is not None else None


def _failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    reasons = []
    for record in records:
        event = record.event_log_entry.dagster_event
        if event is not None:
            said, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
            cause = (error.cause or error) if error is not None else None
            reasons.append((said.description if said else None) or (cause.message if cause else "") or "")
    return "\n".join(reason.strip() for reason in reasons if reason.strip()) or None


def daemon(instance: dg.DagsterInstance | None, now_s: float | None = None) -> Iterator[Check]:
    """Whether a daemon is at work on this home. None need be; two must not."""
    none = "`sae-pipeline run` needs none, `make ui` starts one"
    beats = list(instance.get_daemon_heartbeats().values()) if instance is not None else []
    if not beats:
        yield Check("daemon", "ok", f"none has been at work on this home; {none}")
        return
    age_s = (time.time() if now_s is None else now_s) - max(beat.timestamp for beat in beats)
    errors = [error.message.strip() for beat in beats for error in beat.errors or ()]
    if age_s > _ALIVE_S:
        yield Check("daemon", "ok", f"none at work on this home, the last beat was {age_s / 3600:.3g} h ago; {none}")
    elif errors:
        yield Check("daemon", "warn", f"at work, but it reports: {errors[0]}", "read its log, then restart `make ui`")
    else:
        yield Check("daemon", "ok", "at work on this home; stop it before another `make ui` is started")
