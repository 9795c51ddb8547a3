"""Runs that outlive their process: after kill -9 or a power cut Dagster goes on counting them as running.

Such a run would keep its place in the pool `gpu` and in the queue, and the next run would wait for it for ever. So a
process that executes runs itself holds a lock while it lives, and the next one closes the runs of those that do not.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg

from sae_pipeline.store import Busy
from sae_pipeline.store.locks import FileLock

LEASE = "sae-pipeline/lease"
"""Tag of a run: name of the lock file of the process that executes it."""

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@contextmanager
def lease(instance: dg.DagsterInstance) -> Iterator[dict[str, str]]:
    """Tags for the runs that this process executes within the block; they say whose life to ask for."""
    folder = _folder(instance)
    folder.mkdir(exist_ok=True)
    path = folder / f"{secrets.token_hex(8)}.lock"
    with FileLock(path, wait=True):
        yield {LEASE: path.stem}
        path.unlink()  # not after an error: it may have left a run unfinished


def close_dead_runs(instance: dg.DagsterInstance) -> None:
    """Mark the runs of killed processes as cancelled and give back what they hold.

    Cancelled, not failed: the daemon would retry a failed one beside the run that goes on where it was.
    """
    for path in _folder(instance).glob("*.lock"):
        with suppress(Busy), FileLock(path):
            for run in instance.get_runs(dg.RunsFilter(tags={LEASE: path.stem}, statuses=_UNFINISHED)):
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
                instance.report_run_canceled(run, "Its process was killed; the next run goes on where it was.")
            path.unlink()


def _folder(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "leases"
