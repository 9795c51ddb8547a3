"""Taking shards over from an earlier version of the activations: what the model made once it need not make again.

Shard i of both versions holds the same bits if it covers the same rows of the same contexts, run by the same subject in
the same micro-batches. That is compared, shard by shard; where the tokens come from is not asked. Where a micro-batch
did not fit into memory, the shards after it were made in smaller ones: as they would be here, where both were begun
with the same; what a shard was made with goes with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sae_pipeline.activations.layout import ACTS, HARVEST, span_of
from sae_pipeline.activations.micro_batch import MicroBatch
from sae_pipeline.activations.outliers import OutlierLimit
from sae_pipeline.store import Artefact, Damaged, Draft, Progress, ShardedArray, silent
from sae_pipeline.tokens import Contexts, Tokens

TAKEN: Final = "taken_over"


@dataclass(frozen=True)
class Earlier:
    """An earlier version of a site's activations, and the tokens that it was made from."""

    activations: Artefact
    tokens: Tokens


def take_over(
    draft: Draft,
    contexts: Contexts,
    earlier: Earlier | None,
    wanted: Collection[int],
    *,
    progress: Progress = silent,
) -> None:
    """Commit those of the shards `wanted` that an earlier version holds, each verified first; a damaged one is left.

    Which ones, and whose, is noted in `harvest.json`, before they are committed and again afterwards, so that the note
    is right after a crash too.

    Args:
        draft: the open draft, with its array and its `harvest.json`.
        contexts: the training split that the draft is made from.
        earlier: what to take shards from; None: nothing, but the note of an interrupted attempt is put right.
        wanted: shards to look at; committed ones are passed over.
        progress: told the shards looked at.
    """
    array, note = draft.array(ACTS), _Note(draft)
    source = _source(draft, array, earlier)
    if earlier is None or source is None:
        note.write()
        return
    offered = [i for i in wanted if not array.is_committed(i)]
    offered = list(_covering_the_same(offered, array, source, contexts, earlier.tokens))
    note.add(earlier.activations.identity, offered)
    for done, i in enumerate(offered, 1):
        if not _adopted(array, i, source):
            note.drop(i)
        progress.update(done, len(offered), "shards taken over")
    note.write()


def taken_over(source: Draft | Artefact) -> dict[str, list[int]]:
    """Shards that were taken over, by the identity of the activations that they come from."""
    return {identity: list(shards) for identity, shards in source.read_json(HARVEST).get(TAKEN, {}).items()}


def made_alike(draft: Draft, earlier: Earlier | None) -> Earlier | None:
    """The earlier version, if it was made as the draft is to be: subject, site, dtype, stage. None otherwise."""
    if earlier is None:
        return None
    made, here = earlier.activations.lineage, draft.lineage
    keys = ("stage", "version", "config")
    if "config" not in here or [made.get(key) for key in keys] != [here[key] for key in keys]:
        return None
    try:
        earlier.activations.read_json(HARVEST)
    except Damaged:
        return None
    return earlier


def same_start(contexts: Contexts, earlier: Tokens, n_rows: int) -> bool:
    """Whether the first rows come from the same contexts in an earlier version of the tokens."""
    try:
        then = earlier.split("train")
        span = span_of(contexts.row_offsets, slice(0, n_rows))
        same = n_rows <= then.n_rows and span == span_of(then.row_offsets, slice(0, n_rows))
        return same and _same(contexts, then, span.first, span.last)
    except Damaged:
        return False


def _source(draft: Draft, array: ShardedArray, earlier: Earlier | None) -> ShardedArray | None:
    """The earlier array, if its shards are as this one's are to be: micro-batch, outliers, types, size of a shard."""
    alike = made_alike(draft, earlier)
    if alike is None or _chosen(alike.activations) != _chosen(draft):
        return None
    try:
        found = alike.activations.array(ACTS)
    except Damaged:
        return None
    return found if _form(found) == _form(array) else None


def _chosen(source: Draft | Artefact) -> tuple[object, ...]:
    """What was chosen at run time; where a micro-batch shrank, the record of each shard says what it was made with."""
    return MicroBatch.of(source).begun_with, OutlierLimit.of(source)


def _form(array: ShardedArray) -> tuple[object, ...]:
    return array.shape[1:], array.logical_dtype, array.shard_rows, array.chunk_rows


def _covering_the_same(
    shards: Collection[int], array: ShardedArray, source: ShardedArray, contexts: Contexts, tokens: Tokens
) -> Iterator[int]:
    """Shards whose rows come from contexts of the same ids, of which the same positions are rows, in both versions."""
    try:
        then = tokens.split("train")
        for i in shards:
            if i < source.n_kept and source.rows(i) == array.rows(i):
                span = span_of(contexts.row_offsets, array.rows(i))
                if span == span_of(then.row_offsets, array.rows(i)) and _same(contexts, then, span.first, span.last):
                    yield i
    except Damaged:
        return  # tokens that cannot be read prove nothing


def _same(now: Contexts, then: Contexts, first: int, last: int) -> bool:
    return np.array_equal(now.ids(first, last), then.ids(first, last)) and np.array_equal(
        now.row_mask(first, last), then.row_mask(first, last)
    )


def _adopted(array: ShardedArray, i: int, source: ShardedArray) -> bool:
    try:
        array.adopt(i, source)
    except (Damaged, FileNotFoundError):  # or deleted meanwhile: it is made anew
        return False
    return True


class _Note:
    """The shards taken over, as `harvest.json` says; one that is noted and not committed was never taken."""

    def __init__(self, draft: Draft) -> None:
        self._draft, array = draft, draft.array(ACTS)
        self._taken = {
            identity: {i for i in shards if array.is_committed(i)} for identity, shards in taken_over(draft).items()
        }

    def add(self, identity: str, shards: Collection[int]) -> None:
        self._taken.setdefault(identity, set()).update(shards)
        self.write()

    def drop(self, i: int) -> None:
        for shards in self._taken.values():
            shards.discard(i)

    def write(self) -> None:
        taken = {identity: sorted(shards) for identity, shards in self._taken.items() if shards}
        record: dict[str, Any] = self._draft.read_json(HARVEST)
        if record.get(TAKEN, {}) != taken:
            rest = {name: value for name, value in record.items() if name != TAKEN}
            self._draft.write_json(HARVEST, rest | ({TAKEN: taken} if taken else {}))
