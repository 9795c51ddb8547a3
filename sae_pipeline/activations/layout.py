"""Which rows and contexts a shard covers, and how activations look on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.store import Artefact, ShardedArray
from sae_pipeline.store.array_format import default_chunk_rows
from sae_pipeline.tokens import Contexts

ACTS: Final = "acts"
"""Name of the array of activation rows."""

HARVEST: Final = "harvest.json"
"""What was chosen at run time and can change bits: micro-batch, limit for outliers; and the shards taken over."""

MIN_SHARDS: Final = 16
MAX_SHARD_BYTES: Final = 256 << 20
TORCH_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def shard_rows_of(n_rows: int, shard_tokens: int) -> int:
    """Rows of a shard: at most `shard_tokens`, and few enough for 16 shards to mix while training, where data allows.

    The result is rounded up to a multiple of 64 (of 4096 above 65 536 rows), so that shards divide into even chunks.
    """
    rows = min(shard_tokens, -(-n_rows // MIN_SHARDS))
    unit = 64 if rows <= 65_536 else 4096
    return -(-rows // unit) * unit


def check_shard_bytes(shard_rows: int, width: int, dtype: str) -> None:
    """Refuse shards above 256 MiB, which a reader could not hold several of.

    Raises:
        ActivationError: naming the largest `shard_tokens` that fits.
    """
    row_bytes = width * TORCH_DTYPES[dtype].itemsize
    if shard_rows * row_bytes > MAX_SHARD_BYTES:
        fitting = MAX_SHARD_BYTES // row_bytes // 64 * 64
        raise ActivationError(
            f"a shard of {shard_rows} rows of {width} {dtype} values takes {shard_rows * row_bytes >> 20} MiB of "
            f"at most {MAX_SHARD_BYTES >> 20}; set activations.shard_tokens to {fitting}"
        )


@dataclass(frozen=True)
class Span:
    """Where a shard's rows come from: contexts [first, last), less the first `skip` of their rows."""

    first: int
    last: int
    skip: int


def span_of(row_offsets: npt.NDArray[np.int64], rows: slice) -> Span:
    """Find the contexts that contain `rows`.

    Args:
        row_offsets: [contexts + 1] eligible rows before each context.
        rows: a non-empty range of rows.
    """
    first = int(np.searchsorted(row_offsets, rows.start, side="right")) - 1
    last = int(np.searchsorted(row_offsets, rows.stop, side="left"))
    return Span(first, last, rows.start - int(row_offsets[first]))


def covering_shards(rows: int, n_rows: int, shard_rows: int) -> int:
    """Number of leading shards that hold the first `rows` of `n_rows` rows."""
    return -(-min(rows, n_rows) // shard_rows)


def shard_file_bytes(shard_rows: int, width: int, dtype: str) -> int:
    """Bytes of the file of a full shard: its rows, and for every inner chunk a checksum and an index entry."""
    row_bytes = width * TORCH_DTYPES[dtype].itemsize
    return shard_rows * row_bytes + shard_rows // default_chunk_rows(shard_rows, row_bytes) * (4 + 16) + 4


def contexts_for_rows(contexts: Contexts, n_rows: int) -> int:
    """Number of leading contexts that hold `n_rows` eligible rows, rounded up to the end of a document."""
    if n_rows >= contexts.n_rows:
        return contexts.n
    last = int(np.searchsorted(contexts.row_offsets, n_rows, side="left")) - 1
    same = np.flatnonzero(contexts.document[last:] != contexts.document[last])
    return last + int(same[0]) if same.size else contexts.n


def open_activations(artefact: Artefact) -> ShardedArray:
    """The activation rows [n_rows, d] of a published `activations` artefact, in context order of the training split."""
    return artefact.array(ACTS)
