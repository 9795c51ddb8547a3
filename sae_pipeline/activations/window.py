"""A window on activations: shards made while autoencoders train on them, read, and evicted again.

What is published under `activations.retain: {window: bytes}` or `none` is the form of the whole array and its first
shards, those that `activations.statistics_prefix` covers: the pinned ones. The others pass through a scratch folder,
`.window` in the artefact's. It is a draft of the same identity that is never published: one process at a time holds
it, and shards are made and committed in it as in any other.

A shard is asked for in the read order of the dataset, a group of shards ahead of the batches:

1. It is committed in the scratch folder: it is read, verified as every read is; a damaged one is made again.
2. Otherwise room is made. The shards read last stay, up to the group in training and the one ahead of it; of the others
   the one read last goes, so that a second pass finds the first ones again. A record goes before its file.
3. It is made. Shard i is a function of (identity, i), so it holds the bits that it has under `retain: all`.
4. It is admitted: the gate's figures (`audit_frame`), and the bits that it had before. Those are told by the commit
   record of its first making, which stays in `made/<i>.json` when the shard goes.

A process may die at any moment: a file without a record is deleted when the folder is opened again, a shard without a
`made` record is admitted then, and what exceeds the window is evicted. So the folder is bounded at every moment.

A pass of the subject and a step of training never run at once: the number of threads and the precision of products are
settings of the whole process, and can change bits. Who computes holds `turn`, and a pass runs with the settings that
were in force when the window was opened. Both fill the machine, so nothing is lost by taking turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from sae_pipeline.activations.audit import shard_figures
from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.harvesting import make_shards
from sae_pipeline.activations.layout import (
    ACTS,
    HARVEST,
    covering_shards,
    open_activations,
    shard_file_bytes,
    shard_rows_of,
)
from sae_pipeline.activations.micro_batch import MicroBatch
from sae_pipeline.activations.takeover import TAKEN
from sae_pipeline.store import Artefact, Damaged, Draft
from sae_pipeline.study import ActivationsConfig, Site
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import Tokens

FOLDER: Final = ".window"
_GROUPS: Final = 2  # groups of resident shards that are needed at one moment: in training, and ahead of it
_SAME: Final = ("rows", "bytes", "index_crc32c", "chunk_crc32c")

Retain = Literal["all", "none"] | int
"""`activations.retain`, a window by its bytes."""


def retain_of(config: ActivationsConfig) -> Retain:
    """`activations.retain`, a window by its bytes."""
    return config.retain if isinstance(config.retain, str) else config.retain.window


def pinned_shards(config: ActivationsConfig, tokens: Tokens) -> range:
    """The shards of activations that are published and stay: all, or those that statistics are made from."""
    n_rows = tokens.split("train").n_rows
    rows = n_rows if config.retain == "all" or config.statistics_rows is None else config.statistics_rows
    return range(covering_shards(rows, n_rows, shard_rows_of(tokens.sized_by_rows, config.shard_tokens)))


def window_shards(retain: Retain, resident_shards: int, shard_bytes: int) -> int | None:
    """Most shards on the disk at once, beside the pinned ones; None: any number.

    Args:
        retain: what the study says.
        resident_shards: shards of a group of the read order.
        shard_bytes: of the file of a full shard.

    Raises:
        ActivationError: the window does not hold what is needed at one moment.
    """
    if retain == "all":
        return None
    needed = _GROUPS * resident_shards
    fitting = needed if retain == "none" else retain // shard_bytes
    if fitting < needed:
        raise ActivationError(
            f"activations.retain: a window of {retain:,} bytes holds {fitting} shards of {shard_bytes:,}; "
            f"training needs {needed}, the dataset.resident_shards that it mixes and as many ahead. Raise the window "
            f"to {needed * shard_bytes:,}, or lower activations.shard_tokens"
        )
    return fitting


class Window:
    """All rows of activations of which only the first shards were published. Open it with `with`; see the module.

    Opening it takes the scratch folder for this process, and raises Busy if another one trains on it.

    Args:
        artefact: the published activations.
        site: where they were taken.
        tokens: what they are made from.
        subject: gives the loaded model; called when the first shard has to be made.
        config: how they are made, and how many may stay.
        resident_shards: shards of a group of the read order.

    Attributes:
        turn: held by whoever computes: this while it makes a shard, the consumer while it is at work on a batch.
        n_made: shards made since it was opened.
    """

    def __init__(
        self,
        artefact: Artefact,
        site: Site,
        tokens: Tokens,
        subject: Callable[[], Subject],
        config: ActivationsConfig,
        *,
        resident_shards: int,
    ) -> None:
        self._pinned = open_activations(artefact)
        self._site, self._tokens, self._subject, self._config = site, tokens, subject, config
        self.dtype, self.logical_dtype = self._pinned.dtype, self._pinned.logical_dtype
        shard_bytes = shard_file_bytes(self._pinned.shard_rows, self._pinned.shape[1], self.logical_dtype)
        most = window_shards(retain_of(config), resident_shards, shard_bytes)
        self._most = self._pinned.n_shards if most is None else most
        self._near = _GROUPS * resident_shards - 1
        self._settings = (torch.get_num_threads(), torch.get_float32_matmul_precision())
        self.turn, self.n_made = threading.Lock(), 0
        self._draft = Draft.open(
            artefact.path / FOLDER,
            stage=artefact.stage,
            key=artefact.key,
            identity=artefact.identity,
            lineage=artefact.lineage,
        )
        try:
            self._begin(artefact)
        except BaseException:
            self._draft.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draft.close()

    def read(self, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows `start` to `stop` in the storage dtype, verified; shards that are not there are made first.

        `out`, if given, is a C-contiguous array of the result's shape and dtype to fill.

        Raises:
            ActivationError: a shard is not fit for training, or was made again with other bits.
        """
        out = np.empty((stop - start, *self._pinned.shape[1:]), self.dtype) if out is None else out
        shard_rows = self._pinned.shard_rows
        for i in range(start // shard_rows, -(-stop // shard_rows)):
            a, b = max(start, i * shard_rows), min(stop, (i + 1) * shard_rows)
            if i < self._pinned.n_kept:
                self._pinned.read(a, b, out=out[a - start : b - start])
            else:
                self._read_made(i, a, b, out[a - start : b - start])
        return out

    def _read_made(self, i: int, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        self._provide(i)
        try:
            self._array.read(start, stop, out=out)
        except Damaged:  # here a shard is made again as if it had never been there
            self._drop(i)
            self._provide(i)
            self._array.read(start, stop, out=out)

    def end(self) -> None:
        """All that trains on it is trained: `retain: none` keeps nothing more."""
        if self._config.retain == "none":
            self._shrink(0)

    def _begin(self, artefact: Artefact) -> None:
        """Take over the folder as a process that may have been killed left it."""
        pinned = self._pinned
        self._array = self._draft.array(
            ACTS,
            shape=pinned.shape,
            dtype=self.logical_dtype,
            shard_rows=pinned.shard_rows,
            chunk_rows=pinned.chunk_rows,
        )
        if not self._draft.exists(HARVEST):
            record = artefact.read_json(HARVEST)
            self._draft.write_json(HARVEST, {name: value for name, value in record.items() if name != TAKEN})
        for path in [*self._draft.path.rglob(".*.tmp"), *self._draft.path.rglob("*.partial")]:
            path.unlink()
        for i in range(pinned.n_shards):
            if not self._array.is_committed(i):
                self._array.evict(i)
        self._resident = [i for i in range(pinned.n_shards) if self._array.is_committed(i)]
        self._shrink(self._most)
        for i in list(self._resident):
            if shard_figures(self._array, i)["damage"]:
                self._drop(i)
            else:
                self._admit(i)

    def _provide(self, i: int) -> None:
        """Have shard i committed, as the one read last."""
        if i in self._resident:
            self._resident.remove(i)
        else:
            self._shrink(self._most - 1)
            with self._as_harvested():
                self._make(i)
            self._admit(i)
        self._resident.append(i)

    def _drop(self, i: int) -> None:
        self._resident.remove(i)
        self._array.evict(i)

    def _shrink(self, most: int) -> None:
        while len(self._resident) > most:
            older = len(self._resident) - self._near
            self._array.evict(self._resident.pop(older - 1 if older > 0 else 0))

    @contextmanager
    def _as_harvested(self) -> Iterator[None]:
        with self.turn:
            before = (torch.get_num_threads(), torch.get_float32_matmul_precision())
            _set(*self._settings)
            try:
                yield
            finally:
                _set(*before)

    def _make(self, i: int) -> None:
        """Commit shard i, in the micro-batch of its first making where there was one."""
        now, record = MicroBatch.of(self._draft), self._draft.read_json(HARVEST)
        size = now.of_shard(self._draft.read_json(_made(i))) if self._draft.exists(_made(i)) else now.size
        if size != now.size:
            self._draft.write_json(HARVEST, record | MicroBatch(size, now.begun_with).to_json())
        make_shards(self._subject(), self._tokens, {self._site: self._draft}, self._config, shards=range(i, i + 1))
        if size != now.size:
            self._draft.write_json(HARVEST, record)
        self.n_made += 1

    def _admit(self, i: int) -> None:
        """Refuse shard i, and evict it, if the gate would or if it is not what it was."""
        fault = _fault(shard_figures(self._array, i)) or self._change(i)
        if fault:
            self._array.evict(i)
            raise ActivationError(f"activations of {self._site}, shard {i}: {fault}")
        if not self._draft.exists(_made(i)):
            self._draft.write_json(_made(i), self._array.commit(i))

    def _change(self, i: int) -> str | None:
        if not self._draft.exists(_made(i)):
            return None
        first, again = self._draft.read_json(_made(i)), self._array.commit(i)
        if all(first[name] == again[name] for name in _SAME):
            return None
        return (
            "it was made again and holds other bits than before, so that batches would not be those that training "
            "began with. Another machine, number of threads or version of PyTorch makes other bits: go on where "
            f"training began, or delete {self._draft.path} to go on with the new ones"
        )


def _made(i: int) -> str:
    return f"made/{i}.json"


def _set(threads: int, precision: str) -> None:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def _fault(figures: dict[str, Any]) -> str | None:
    """Why a shard with these figures must not be trained on; the rules of the activations' gate, for one shard."""
    if figures["damage"]:
        return str(figures["damage"])
    if figures["non_finite"]:
        return f"{figures['non_finite']} of its rows hold a NaN or an infinite value"
    if figures["rows"] != figures["rows_expected"]:
        return f"it has {figures['rows']} rows of {figures['rows_expected']}"
    return f"{figures['constant_dims']} of its channels never change" if figures["constant_dims"] else None
