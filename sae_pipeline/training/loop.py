"""The training loop: every member of a site on one stream of batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_pipeline.dataset import Dataset
from sae_pipeline.kernels import fast_float32_matmul
from sae_pipeline.store import Progress, silent
from sae_pipeline.study import StopRule
from sae_pipeline.training.cost import groups_within
from sae_pipeline.training.log import shown
from sae_pipeline.training.member import Member, Outcome, check
from sae_pipeline.training.run import Run
from sae_pipeline.training.workers import Workers, threads_for

OnRow = Callable[[str, Mapping[str, Any]], None]


def train(
    members: Mapping[str, Member],
    dataset: Dataset,
    *,
    device: str | torch.device = "cpu",
    checkpoint_every_s: float = 60.0,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
    held_out_xd: Tensor | None = None,
    stop_if: StopRule | None = None,
    on_row: OnRow | None = None,
    memory_bytes: int | None = None,
) -> dict[str, Outcome]:
    """Train the members to the end of their token budgets, until they have converged, or until asked to stop.

    Members of equal batch size and step share each batch; one that is behind catches up by itself and joins. None of
    this changes what a member becomes: training it alone, with others, in groups or in pieces gives the same bits.

    Args:
        members: by key; each draft receives autoencoder.safetensors, config.json, training.parquet, training.json and
            the milestones of its spec, and is left open and unpublished. A draft with a checkpoint is resumed, a
            finished one left as it is.
        dataset: the normalised rows of the site.
        device: where to train.
        checkpoint_every_s: seconds between the checkpoints of a member.
        progress: told the rows trained on, summed over members.
        should_stop: asked before every batch; True checkpoints every member and returns.
        held_out_xd: normalised rows [rows, d] on which finished members and milestones are measured.
        stop_if: when to give a member up before its end.
        on_row: told the key of a member and each row that its log gains.
        memory_bytes: members train at once as far as their states fit in this, else in groups, one after another; one
            that does not fit trains alone.

    Returns:
        How each member ended, by key. One that diverged or was given up says so there; the others go on. One whose
        turn had not come when asked to stop has stopped at step 0.

    Raises:
        PipelineError: a spec cannot be trained (before any work starts), or a checkpoint cannot be read.
    """
    for member in members.values():
        check(member.spec)
    device = torch.device(device)
    threads = {key: threads_for(member.spec, dataset.d) for key, member in members.items()}  # before one is the rule
    with fast_float32_matmul(), Workers(device) as workers:
        session = _Session(
            members, threads, dataset, device, workers, checkpoint_every_s, progress, should_stop, held_out_xd, stop_if,
            on_row,
        )  # fmt: skip
        for keys in groups_within({key: member.spec for key, member in members.items()}, dataset.d, memory_bytes):
            if not session.run(keys):
                break
    return {key: session.outcomes.get(key, Outcome("stopped", 0, 0)) for key in members}


@dataclass
class _Session:
    members: Mapping[str, Member]
    threads: Mapping[str, int]
    dataset: Dataset
    device: torch.device
    workers: Workers
    checkpoint_every_s: float
    progress: Progress
    should_stop: Callable[[], bool]
    held_out_xd: Tensor | None
    stop_if: StopRule | None
    on_row: OnRow | None
    runs: dict[str, Run] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)

    def run(self, keys: Sequence[str]) -> bool:
        """Train these members to their ends; False if asked to stop before."""
        for key in keys:
            self.runs[key] = Run(self.members[key], self.dataset, self.device, self.threads[key], self.stop_if)
            self.told[key] = len(self.runs[key].log.rows)
        completed = all(self._run(batch) for batch in sorted({run.spec.batch for run in self.runs.values()}))
        self.outcomes |= {key: run.outcome() for key, run in self.runs.items()}
        self.runs.clear()  # and with them their memory, for the next
        return completed

    def _run(self, batch: int) -> bool:
        while active := [run for run in self._active() if run.spec.batch == batch]:
            first = min(run.step for run in active)
            group = [run for run in active if run.step == first]
            ends = [run.step for run in active if run.step > first] + [run.steps for run in group]
            if not self._stretch(group, batch, first, min(ends)):
                return False
        return True

    def _stretch(self, group: Sequence[Run], batch: int, first: int, last: int) -> bool:
        """Train a group from step `first` up to `last`; False if asked to stop before."""
        with closing(self.dataset.batches(batch, first, last - first, device=self.device)) as batches:
            while group := [run for run in group if run.status == "running" and run.step < last]:
                if self.should_stop():
                    for run in self._active():
                        run.save()
                    return False
                asked_at = time.perf_counter()
                x_bd = next(batches).x_bd
                self.workers.advance(group, x_bd, time.perf_counter() - asked_at)
                self._after_step(group)
        return True

    def _after_step(self, group: Sequence[Run]) -> None:
        for run in group:
            if run.status == "running":
                run.keep(self.held_out_xd)  # before a checkpoint, which would step over it
            if run.status == "running" and run.step == run.steps:
                run.finish(self.held_out_xd)
            elif run.status == "hopeless":
                run.save()
            elif run.status == "running":
                run.save_if_due(self.checkpoint_every_s)
        self._tell(group)

    def _tell(self, group: Sequence[Run]) -> None:
        for key, run in self.runs.items():
            if self.on_row is not None:
                for row in run.log.rows[self.told[key] :]:
                    self.on_row(key, row)
            self.told[key] = len(run.log.rows)
        ended = sum(outcome.tokens for outcome in self.outcomes.values())
        done = ended + sum(run.tokens for run in self.runs.values())
        total = ended + sum(_to_do(run) for run in self.runs.values())
        waiting = [key for key in self.members if key not in self.runs and key not in self.outcomes]
        total += sum(self.members[key].spec.steps * self.members[key].spec.batch for key in waiting)
        figures = shown([run.log for run in group])
        self.progress.update(done, total, "tokens", members=len(group), step=group[0].step, **figures)

    def _active(self) -> list[Run]:
        return [run for run in self.runs.values() if run.status == "running"]


def _to_do(run: Run) -> int:
    """Tokens of its whole run; what a member that diverged or was given up leaves undone will not be done."""
    return run.tokens if run.status in ("diverged", "hopeless") else run.steps * run.spec.batch
