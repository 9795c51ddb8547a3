"""Damaged shards of activations made again: with the same bits where these can be had, else with bits close to them.

Where the processor, the device or a library differs from those that made a shard, so may its last bits. Such a shard
takes the place of the damaged one if it agrees with what is known of that: with the moments in its commit record, and
value by value with every inner chunk that is still whole. A repair record then says so (docs/format.md, Repair).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae_pipeline.activations.closeness import closeness
from sae_pipeline.activations.layout import ACTS
from sae_pipeline.activations.remaking import Recipe, Remaking, WholeShard
from sae_pipeline.store import Artefact, Damaged, Outputs, Progress, ShardedArray, silent
from sae_pipeline.store.array_format import ShardSeal
from sae_pipeline.store.atomic import replace
from sae_pipeline.store.errors import PathError
from sae_pipeline.store.locks import FileLock
from sae_pipeline.store.repairs import drop_repair, put_file, write_repair

How = Literal["whole", "put back", "remade", "refused"]


@dataclass(frozen=True)
class Repaired:
    """What became of one damaged shard.

    Attributes:
        shard: its number.
        how: `whole`: it was repaired meanwhile; `put back`: every bit is as it was committed; `remade`: its bits are
            others, within tolerance, and a repair record vouches for them; `refused`: nothing was changed.
        says: the figures or the reason, in a sentence.
        also: artefacts that held the same shard, damaged too and repaired in the same way.
    """

    shard: int
    how: How
    says: str
    also: tuple[Path, ...] = ()


class _Published:
    """Shard i of a published `activations` artefact, whole or not."""

    def __init__(self, artefact: Artefact, i: int) -> None:
        self._artefact, self.path, self.i = artefact, artefact.path, i
        self.commit_sha256: str = artefact.listing(ACTS)[i]["commit_sha256"]

    @property
    def array(self) -> ShardedArray:
        """The array, with nothing remembered of the shard as it was before."""
        return self._artefact.array(ACTS)

    def is_whole(self) -> bool:
        """Whether every chunk and record is as published, or as a repair record vouches for."""
        try:
            self.array.read_shard(self.i)
        except (Damaged, OSError):
            return False
        return True

    def record(self) -> dict[str, Any] | None:
        """Its commit record; None if that is damaged."""
        try:
            return self.array.commit(self.i)
        except Damaged:
            return None

    def vouchers(self) -> list[dict[str, Any]]:
        """The records, of commit and of an earlier repair, that vouch for chunks of it which are whole."""
        try:
            found = self.record(), self.array.repair(self.i)
        except Damaged:
            found = self.record(), None
        return [record for record in found if record is not None]

    def as_committed(self) -> WholeShard | None:
        """Its file and record, if both have the bits that were published."""
        if not self.is_whole() or self.array.repair(self.i) is not None:
            return None
        return WholeShard(self.array.shard_path(self.i), self.array.commit_path(self.i).read_bytes())

    def put_back(self, shard: WholeShard) -> None:
        """Give it the bits that were committed. A death on the way leaves it damaged."""
        with FileLock(self.path / ".lock"):
            put_file(shard.path, self.array.shard_path(self.i))
            if self.record() is None and shard.commit_sha256 == self.commit_sha256:
                replace(self.array.commit_path(self.i), shard.record)
            drop_repair(self.path, ACTS, self.i)

    def put_other(self, shard: WholeShard, evidence: dict[str, Any]) -> None:
        """Give it other bits. Its repair record first: a death in between leaves the damaged file, and what of it is
        whole can be compared with again."""
        seal = shard.seal
        vouched = {
            "array": ACTS,
            "shard": self.i,
            "replaces": self.commit_sha256,
            "bytes": seal.n_bytes,
            "index_crc32c": seal.index_crc32c,
            "chunk_crc32c": list(seal.chunk_crc32c),
        }
        with FileLock(self.path / ".lock"):
            write_repair(self.path, vouched | evidence)
            put_file(shard.path, self.array.shard_path(self.i))


def repair_shards(
    outputs: Outputs,
    artefact: Artefact,
    shards: Collection[int],
    recipe: Callable[[], Recipe],
    *,
    tolerance: float | None = None,
    progress: Progress = silent,
) -> Iterator[Repaired]:
    """Repair damaged shards of a published `activations` artefact, one after the other.

    The file of another artefact that took the shard over, or gave it, is taken if it is whole; else the model is run.
    Other artefacts that hold the same shard are repaired first, so that a death on the way leaves this one damaged and
    the next repair finds all of them.

    Args:
        outputs: the output folder that the artefact lies in.
        artefact: all of whose listed files are whole.
        shards: numbers of those whose file, commit record or repair record is damaged.
        recipe: what to make them again from; called only if that is needed.
        tolerance: largest difference to accept, see `closeness`; None: what rounding explains, `rounding_tolerance`.
        progress: told the tokens done.

    Raises:
        Busy: a process is at work on the artefact, or repairs it too.
        PipelineError: it cannot be made again from this recipe.
    """
    with Remaking(outputs, artefact, recipe, progress) as remaking:
        for i in shards:
            yield _repair(artefact, i, remaking, tolerance)


def _repair(artefact: Artefact, i: int, remaking: Remaking, tolerance: float | None) -> Repaired:
    own = _Published(artefact, i)
    if own.is_whole():
        return Repaired(i, "whole", "repaired meanwhile")
    holders = list(_others(artefact, own))
    damaged = [other for other in holders if not other.is_whole()]
    also = tuple(other.path for other in damaged)
    copy = next((shard for other in holders if (shard := other.as_committed())), None)
    shard = copy or remaking.shard(i)
    record = own.record()
    if shard.commit_sha256 == own.commit_sha256 or (record is not None and shard.seal == ShardSeal.of(record)):
        for target in (*damaged, own):
            target.put_back(shard)
        return Repaired(i, "put back", "from another artefact" if copy else "made again, every bit is the same", also)
    if record is None:
        return Repaired(i, "refused", "its commit record is lost, and the one made again is another")
    found = closeness(own.array, i, own.vouchers(), remaking.rows(i))
    limit = remaking.tolerance if tolerance is None else tolerance
    if not found.within(limit):
        return Repaired(i, "refused", f"made again it is another: {found}; accepted are {limit:.2g}")
    for target in (*damaged, own):
        target.put_other(shard, remaking.evidence(found, limit))
    return Repaired(i, "remade", str(found), also)


def _others(artefact: Artefact, own: _Published) -> Iterator[_Published]:
    """The same shard in other artefacts: with an equal commit record."""
    for folder in sorted(artefact.path.parent.glob("[!.]*")):
        if folder != artefact.path:
            with contextlib.suppress(PathError, OSError):
                other = Artefact.open(folder)
                if ACTS in other.arrays and own.i < len(other.listing(ACTS)):
                    found = _Published(other, own.i)
                    if found.commit_sha256 == own.commit_sha256:
                        yield found
