"""A small artefact with everything in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sae_pipeline.store import Draft

ROWS_XD = np.random.default_rng(7).standard_normal((90, 6)).astype(np.float16)
INDEX_X = np.arange(90, dtype=np.int64) * 3


def open_draft(path: Path) -> Draft:
    return Draft.open(path, stage="activations", key="code.1.mlp_out", identity="0f" * 32, lineage={"from": ["a", 1]})


def fill(draft: Draft) -> list[bool]:
    """A small artefact with everything in it: two arrays (three shards, the last short), JSON, bytes, a subfolder."""
    acts = draft.array("acts", shape=ROWS_XD.shape, dtype="float16", shard_rows=36, chunk_rows=12)
    index = draft.array("index", shape=INDEX_X.shape, dtype="int64", shard_rows=36)
    written = [acts.write_shard(i, ROWS_XD[acts.rows(i)], {"seen": [i, 0.5]}) for i in range(acts.n_shards)]
    written += [index.write_shard(i, INDEX_X[index.rows(i)]) for i in range(index.n_shards)]
    draft.write_json("statistics.json", {"mean": [0.25, 1.5], "name": "paper"})
    draft.write_bytes("figures/loss.bin", bytes(range(256)))
    return written
