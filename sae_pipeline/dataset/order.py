"""The seeded read order: which row of the activations is at which place of training.

Each epoch permutes the shards, cuts them into groups of at most `resident_shards`, and permutes the pooled rows of
each group; epochs follow one another without a gap. So every row appears once per epoch, and the row at a place is a
function of (seed, place) alone. Permutations come from the raw output of Philox, which numpy guarantees never to
change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from sae_pipeline.store import PipelineError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Shards pooled in memory together; they fill the places `start` to `start + n_rows` of the order."""

    epoch: int
    index: int
    shards: tuple[int, ...]
    start: int
    n_rows: int


@dataclass(frozen=True)
class ReadOrder:
    """The order of `n_rows` rows lying in shards of `shard_rows` (the last may be shorter)."""

    n_rows: int
    shard_rows: int
    seed: int
    resident_shards: int

    def __post_init__(self) -> None:
        if min(self.n_rows, self.shard_rows, self.resident_shards) < 1 or self.seed < 0:
            raise PipelineError(f"{self}: rows and shards must be positive, the seed not negative")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ReadOrder:
        """The order whose fields are among those of `value`."""
        return cls(**{field.name: value[field.name] for field in fields(cls)})

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.n_rows // self.shard_rows)

    @property
    def n_groups(self) -> int:
        """Number of groups of resident shards in an epoch."""
        return -(-self.n_shards // self.resident_shards)

    def shard_slice(self, i: int) -> slice:
        """The rows of shard i."""
        return slice(i * self.shard_rows, min((i + 1) * self.shard_rows, self.n_rows))

    def groups(self, place: int) -> Iterator[Group]:
        """The groups from the one that holds `place` on, without end."""
        epoch, start = place // self.n_rows, place // self.n_rows * self.n_rows
        while True:
            # Sizes differ by at most one: a lone last shard would be mixed with nothing.
            cut = np.array_split(permutation(self.n_shards, self.seed, epoch, 0), self.n_groups)
            for index, shards in enumerate(cut):
                group = self._group(epoch, index, shards, start)
                start += group.n_rows
                if start > place:
                    yield group
            epoch += 1

    def _group(self, epoch: int, index: int, shards: Rows, start: int) -> Group:
        slices = [self.shard_slice(int(i)) for i in shards]
        return Group(epoch, index, tuple(shards.tolist()), start, sum(rows.stop - rows.start for rows in slices))

    def pooled(self, group: Group) -> Rows:
        """Where in the pool (the group's shards one after the other) each of its places finds its row."""
        return permutation(group.n_rows, self.seed, group.epoch, 1 + group.index)

    def pool_rows(self, group: Group) -> Rows:
        """The row of the activations at each index of the pool."""
        slices = [self.shard_slice(i) for i in group.shards]
        return np.concatenate([np.arange(rows.start, rows.stop) for rows in slices])

    def rows(self, start: int, stop: int) -> Rows:
        """The rows of the activations at the places `start` to `stop`."""
        found = []
        for group in self.groups(start):
            if group.start >= stop:
                break
            places = slice(max(start - group.start, 0), stop - group.start)
            found.append(self.pool_rows(group)[self.pooled(group)[places]])
        return np.concatenate(found) if found else np.empty(0, np.int64)


def permutation(n: int, *seeds: int) -> Rows:
    """A permutation of n that depends on the seeds (non-negative integers) alone.

    Sorts 64-bit random numbers whose low bits are replaced by the index: no two are equal, so every sort agrees, and
    sorting values is eight times faster than sorting an index by them.
    """
    keys = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(n)
    mask = np.uint64((1 << n.bit_length()) - 1)
    keys &= ~mask
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= mask
    return keys.view(np.int64)
