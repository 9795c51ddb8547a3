"""A dataset's own copy of its rows: normalised float32, in the order and the shards of the activations.

What `dataset.copy: true` adds to the artefact. The read order stays what it is, so that batches are those of the view,
bit for bit; each is a gather, and no normalisation. Reading takes twice the bytes of half-precision activations.
"""

from __future__ import annotations

from typing import Final

import torch

from sae_pipeline.dataset.normaliser import Normaliser
from sae_pipeline.store import Draft, Progress, ShardedArray, silent

ROWS: Final = "rows"
"""Name of the array; a dataset that lacks it is a view."""


def write_copy(draft: Draft, acts: ShardedArray, normaliser: Normaliser, progress: Progress = silent) -> None:
    """Write the rows of `acts` (n_rows, d), normalised, shard by shard; shards that are committed are left as they are.

    Memory: one shard in its stored dtype and twice in float32.
    """
    rows = draft.array(ROWS, shape=acts.shape, dtype="float32", shard_rows=acts.shard_rows)
    for i in range(rows.n_shards):
        if not rows.is_committed(i):
            shard = acts.rows(i)
            raw_rd = torch.from_numpy(acts.read_float32(shard.start, shard.stop))
            rows.write_shard(i, normaliser.rows(raw_rd).numpy())
        progress.update(rows.rows(i).stop, rows.n_rows, "rows copied")
