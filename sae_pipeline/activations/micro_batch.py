"""The micro-batch: how many contexts one forward pass takes; chosen at run time, able to change bits, so recorded.

It only ever shrinks, by halves, where memory does not suffice. What `harvest.json` says then is the one to go on with,
and the one that the draft was begun with. Every shard's record says which one made it: shards committed before are
right, and stay.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.layout import HARVEST
from sae_pipeline.store import Artefact, Draft

MICRO_BATCH: Final = "micro_batch"
_BEGUN_WITH: Final = "begun_with"
_SAYS: Final = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""What torch calls a plain RuntimeError when the processor's memory or a CUDA library's does not suffice."""


@dataclass(frozen=True)
class MicroBatch:
    """Contexts of one forward pass: now, and when the draft was begun. Equal unless memory did not suffice."""

    size: int
    begun_with: int

    @classmethod
    def of(cls, source: Draft | Artefact) -> MicroBatch:
        """What `harvest.json` says."""
        return cls._of(source.read_json(HARVEST))

    @classmethod
    def _of(cls, record: Mapping[str, Any]) -> MicroBatch:
        size = int(record[MICRO_BATCH])
        return cls(size, int(record.get(_BEGUN_WITH, size)))

    def to_json(self) -> dict[str, int]:
        """The entries of `harvest.json`."""
        return {MICRO_BATCH: self.size} | ({_BEGUN_WITH: self.begun_with} if self.size != self.begun_with else {})

    def of_shard(self, record: Mapping[str, Any]) -> int:
        """The one that made a shard, as its commit record says; one without a word of it was made before any shrank."""
        return int(record["info"].get(MICRO_BATCH, self.begun_with))


def settle_micro_batch(drafts: Collection[Draft], wanted: int, earlier: Collection[Artefact] = ()) -> int:
    """Reuse the micro-batch that drafts were begun with, or record `wanted` in those that are new.

    Where it shrank, in one of the drafts or in an `earlier` version begun with `wanted`, it need not shrink again.

    Raises:
        ActivationError: the drafts were begun with different ones, so no pass can continue them together.
    """
    found = [MicroBatch.of(draft) for draft in drafts if draft.exists(HARVEST)]
    begun_with = {each.begun_with for each in found}
    if len(begun_with) > 1:
        raise ActivationError(
            f"drafts begun with micro-batches of {sorted(begun_with)} contexts must be harvested apart"
        )
    if not found:
        before = (MicroBatch.of(artefact) for artefact in earlier)
        found = [MicroBatch(wanted, wanted), *(each for each in before if each.begun_with == wanted)]
    settled = min(found, key=lambda each: each.size)
    for draft in drafts:
        if not draft.exists(HARVEST):
            draft.write_json(HARVEST, settled.to_json())
    return settled.size


def halved(failed: int, needed: str) -> int:
    """The micro-batch to try after one that did not fit.

    Raises:
        ActivationError: it was a single context; `needed` is what torch said.
    """
    if failed == 1:
        raise ActivationError(
            f"a forward pass of a single context does not fit into memory ({needed.splitlines()[0]}); "
            "lower tokens.context, or choose a smaller subject.dtype or subject"
        )
    return failed // 2


def record_micro_batch(draft: Draft, size: int) -> None:
    """Note in a draft that memory sufficed for no more than `size` contexts a pass."""

    def shrunk(record: dict[str, Any]) -> dict[str, Any]:
        now = MicroBatch._of(record)
        return record | MicroBatch(min(size, now.size), now.begun_with).to_json()

    draft.update_json(HARVEST, shrunk)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: on a GPU, in torch's allocator of the processor, in Python."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)


def free_memory(device: torch.device) -> None:
    """Give back what a failed pass held. Call it outside of the `except` clause: the traceback holds its tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
