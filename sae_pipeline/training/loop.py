"""The training loop: every member of a site on one stream of batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_pipeline.dataset import Dataset
from sae_pipeline.kernels import fast_float32_matmul
from sae_pipeline.store import Progress, silent
from sae_pipeline.study import StopRule
from sae_pipeline.training.member import Member, Outcome
from sae_pipeline.training.run import Run
from sae_pipeline.training.workers import Workers, threads_for


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
) -> dict[str, Outcome]:
    """Train the members to the end of their token budgets, until they have converged, or until asked to stop.

    Members of equal batch size and step share each batch; one that is behind catches up by itself and joins. None of
    this changes what a member becomes: training it alone, with others, or in pieces gives the same bits.

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

    Returns:
        How each member ended, by key. One that diverged or was given up says so there; the others go on.

    Raises:
        PipelineError: a spec cannot be trained (before any work starts), or a checkpoint cannot be read.
    """
    device = torch.device(device)
    runs = {
        key: Run(member, dataset, device, threads_for(member.spec, dataset.d), stop_if)
        for key, member in members.items()
    }
    with fast_float32_matmul(), Workers(device) as workers:
        session = _Session(
            list(runs.values()), dataset, device, workers, checkpoint_every_s, progress, should_stop, held_out_xd
        )
        session.run()
    return {key: run.outcome() for key, run in runs.items()}


@dataclass
class _Session:
    runs: list[Run]
    dataset: Dataset
    device: torch.device
    workers: Workers
    checkpoint_every_s: float
    progress: Progress
    should_stop: Callable[[], bool]
    held_out_xd: Tensor | None

    def run(self) -> None:
        for batch in sorted({run.spec.batch for run in self.runs}):
            while active := [run for run in self._active() if run.spec.batch == batch]:
                first = min(run.step for run in active)
                group = [run for run in active if run.step == first]
                ends = [run.step for run in active if run.step > first] + [run.steps for run in group]
                if not self._stretch(group, batch, first, min(ends)):
                    return

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
        done = sum(run.tokens for run in self.runs)
        # What a member that diverged or was given up leaves undone will not be done.
        ended = ("diverged", "hopeless")
        total = sum((run.step if run.status in ended else run.steps) * run.spec.batch for run in self.runs)
        self.progress.update(done, total, "tokens", members=len(group), step=group[0].step)

    def _active(self) -> list[Run]:
        return [run for run in self.runs if run.status == "running"]
