"""A published dataset: its statistics, and the endless seeded stream of batches that training sees."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_pipeline.activations import Window, open_activations
from sae_pipeline.dataset.copy import ROWS
from sae_pipeline.dataset.gaussian import RECORD, Gaussian
from sae_pipeline.dataset.normaliser import Normaliser
from sae_pipeline.dataset.order import Group, ReadOrder
from sae_pipeline.dataset.prefetch import Prefetch
from sae_pipeline.dataset.statistics import Statistics
from sae_pipeline.store import Artefact, PipelineError

T = TypeVar("T")
Buffer = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """The normalised rows x_bd (float32) of training step `step`; `step + 1` is where a later stream goes on."""

    step: int
    x_bd: Tensor


class Source(Protocol):
    """Where rows are read from: an array, or a window that makes those that are not there."""

    dtype: np.dtype[Any]
    logical_dtype: str

    def read(self, start: int, stop: int, out: Buffer | None = None) -> Buffer:
        """Rows `start` to `stop` as they are stored, verified; into `out` if it is given."""
        ...


@dataclass(frozen=True)
class _Pool:
    group: Group
    rows: Tensor  # the group's raw rows in their stored dtype
    buffer: Buffer | None  # the memory under `rows`, to be used again once they are read
    order: Tensor  # where each place of the group finds its row


class Dataset:
    """The training rows of one site, normalised as they are read. Make one with `Dataset.open`.

    A dataset that holds a copy of its rows reads these, and does not normalise again.

    A null dataset hands out draws from its `gaussian` instead. They never were activations, so that nothing has to be
    normalised: its normaliser is `none`, and so is that of every autoencoder trained on it.
    """

    def __init__(
        self,
        artefact: Artefact,
        source: Source,
        normaliser: Normaliser,
        statistics: Statistics,
        order: ReadOrder,
        gaussian: Gaussian | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        self.artefact, self.statistics, self.order, self.gaussian = artefact, statistics, order, gaussian
        as_is = Normaliser("none", normaliser.d)
        self.normaliser = normaliser if gaussian is None else as_is
        self._to_apply = as_is if ROWS in artefact.arrays else normaliser
        self._source, self._turn = source, turn or nullcontext()

    @classmethod
    def open(cls, artefact: Artefact, activations: Artefact, window: Window | None = None) -> Dataset:
        """Open a published dataset over the activations it was built from.

        Where these were published under a window, it takes the open `window` to read more than their first shards. Then
        one stream of batches may be open at a time, and its consumer holds the window's `turn` between two batches.
        """
        order: dict[str, Any] = artefact.read_json("order.json")
        if order["activations"] != activations.identity:
            raise PipelineError(f"{artefact.path}: was built from other activations than {activations.path}")
        return cls(
            artefact,
            artefact.array(ROWS) if ROWS in artefact.arrays else window or open_activations(activations),
            Normaliser.from_config(artefact.read_json("normaliser.json")),
            Statistics.from_json(artefact.read_json("statistics.json")),
            ReadOrder.from_json(order),
            Gaussian.open(artefact) if artefact.exists(RECORD) else None,
            window and window.turn,
        )

    @property
    def n_rows(self) -> int:
        """Rows of one epoch."""
        return self.order.n_rows

    @property
    def d(self) -> int:
        """Width of a row."""
        return self.normaliser.d

    @cached_property
    def sample(self) -> Tensor:
        """Normalised rows (m, d), float32, drawn by seed over all rows, in random order."""
        return torch.from_numpy(np.load(self.artefact.file("sample.npy"), allow_pickle=False))

    def batches(
        self, batch: int, first_step: int, n_steps: int, *, device: str | torch.device = "cpu", prefetch: int = 2
    ) -> Generator[Batch, None, None]:
        """Batches of `batch` rows for the steps `first_step` to `first_step + n_steps`.

        Batch t holds the places t·batch to (t+1)·batch of the read order: a function of (seed, batch, t) alone, epochs
        following one another. Up to `prefetch` batches are made ahead in a thread, and the next group of shards is read
        in another (none with `prefetch=0`); memory holds at most two groups in their stored dtype and `prefetch + 1`
        batches. An error of a thread is raised here. Threads end with the iterator: exhausted, closed or dropped.

        Of a null dataset, batch t holds the draws at those places; there are no epochs.
        """
        if batch < 1 or first_step < 0 or prefetch < 0:
            raise PipelineError(f"batch {batch} must be positive, first_step {first_step} and prefetch not negative")
        if self.gaussian is not None:
            return _ahead(partial(_drawn, self.gaussian, batch, first_step, n_steps, torch.device(device)), prefetch)
        make = partial(self._make, batch, first_step, n_steps, torch.device(device), prefetch > 0)
        return self._in_turn(_ahead(make, prefetch))

    def _in_turn(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """The batches, with the turn held while their consumer is at work on one."""
        with closing(batches):
            for batch in batches:
                with self._turn:
                    yield batch

    def _make(self, batch: int, first_step: int, n_steps: int, device: torch.device, threaded: bool) -> Iterator[Batch]:
        first, last = first_step * batch, (first_step + n_steps) * batch
        step, parts, missing = first_step, [], batch
        free: list[Buffer] = []
        with closing(_ahead(partial(self._pools, first, last, device, free), int(threaded))) as pools:
            for pool in pools:
                place = max(first, pool.group.start) - pool.group.start
                end = min(last, pool.group.start + pool.group.n_rows) - pool.group.start
                while place < end:
                    take = min(missing, end - place)
                    parts.append(pool.rows.index_select(0, pool.order[place : place + take]))
                    place, missing = place + take, missing - take
                    if missing == 0:
                        raw_bd = parts[0] if len(parts) == 1 else torch.cat(parts)
                        yield Batch(step, self._to_apply.rows(raw_bd))
                        step, parts, missing = step + 1, [], batch
                if pool.buffer is not None:
                    free.append(pool.buffer)

    def _pools(self, first: int, last: int, device: torch.device, free: list[Buffer]) -> Iterator[_Pool]:
        for group in self.order.groups(first):
            if group.start >= last:
                return
            # Fresh memory costs as much in page faults as reading does.
            yield self._load(group, device, free.pop() if free else self._buffer())

    def _buffer(self) -> Buffer:
        return np.empty(
            (min(self.order.resident_shards * self.order.shard_rows, self.n_rows), self.d), self._source.dtype
        )

    def _load(self, group: Group, device: torch.device, buffer: Buffer) -> _Pool:
        rows, start = buffer[: group.n_rows], 0
        for i in group.shards:
            shard = self.order.shard_slice(i)
            stop = start + shard.stop - shard.start
            self._source.read(shard.start, shard.stop, out=rows[start:stop])
            start = stop
        tensor = torch.from_numpy(rows)
        if self._source.logical_dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        order = torch.from_numpy(self.order.pooled(group))
        return _Pool(group, tensor.to(device), buffer if device.type == "cpu" else None, order.to(device))


def _drawn(gaussian: Gaussian, batch: int, first_step: int, n_steps: int, device: torch.device) -> Iterator[Batch]:
    for step in range(first_step, first_step + n_steps):
        yield Batch(step, gaussian.rows("training", step * batch, (step + 1) * batch).to(device))


def _ahead(make: Callable[[], Iterator[T]], depth: int) -> Generator[T, None, None]:
    """`make()`, run up to `depth` items ahead in a thread that ends when this generator is closed or dropped."""
    if depth == 0:
        yield from make()
        return
    with Prefetch(make, depth) as items:
        yield from items
