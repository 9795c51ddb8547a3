"""The eligible rows of an evaluation set in equal blocks, whatever contexts they come from."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.activations import EvaluationSet

_READ_BYTES = 32 << 20


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` of the evaluation set: raw activations [r, d], document and position of each."""

    start: int
    x_rd: Tensor
    document_r: NDArray[np.int64]
    position_r: NDArray[np.int64]

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + len(self.x_rd)

    def split(self, at: int) -> tuple["Block", "Block"]:
        """The first `at` rows, and the rest."""
        first = Block(self.start, self.x_rd[:at], self.document_r[:at], self.position_r[:at])
        return first, Block(self.start + at, self.x_rd[at:], self.document_r[at:], self.position_r[at:])

    def join(self, other: "Block") -> "Block":
        """These rows and the ones that follow."""
        return Block(
            self.start,
            torch.cat([self.x_rd, other.x_rd]),
            np.concatenate([self.document_r, other.document_r]),
            np.concatenate([self.position_r, other.position_r]),
        )


def row_blocks(evaluation_set: EvaluationSet, block_rows: int) -> Iterator[Block]:
    """All eligible rows in order, `block_rows` at a time, the last block perhaps shorter."""
    no_rows = np.empty(0, np.int64)
    held = Block(0, torch.empty(0, evaluation_set.d), no_rows, no_rows)
    for a, b in _context_ranges(evaluation_set):
        held = held.join(Block(held.stop, *evaluation_set.rows(a, b)))
        while len(held.x_rd) >= block_rows:
            block, held = held.split(block_rows)
            yield block
    if len(held.x_rd):
        yield held


def _context_ranges(evaluation_set: EvaluationSet) -> Iterator[tuple[int, int]]:
    step = max(1, _READ_BYTES // (4 * evaluation_set.context * evaluation_set.d))
    for a in range(0, evaluation_set.n_contexts, step):
        yield a, min(a + step, evaluation_set.n_contexts)
