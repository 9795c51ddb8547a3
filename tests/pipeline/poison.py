"""Poison for one shard of a draft of activations: what a sick machine might leave behind, committed or not."""

import os
import shutil

import numpy as np

from sae_pipeline.activations import Moments
from sae_pipeline.activations.layout import HARVEST
from sae_pipeline.store import Draft

BAD = 2  # the shard

SAYS = {
    "nan": "non_finite",
    "constant": "constant_dims",
    "truncated": "damage",
    "swapped": "damage",
    "repeated": "duplicate_of",
}
"""Word of the gate's message by kind of poison."""


def plant(workspace, site: str, kind: str) -> None:
    """Turn the published activations of a site into a draft whose shard `BAD` is spoiled, as if a run had died there.

    The next run takes the committed shards as they are and has only to publish them.
    """
    node = workspace.lineage[f"activations/{site}"]
    healthy = workspace.artefact(node.name)
    config = workspace.study.activations
    rows = healthy.array("acts")
    blocks = [np.asarray(rows.read_shard(i)) for i in range(rows.n_shards)]
    infos = [rows.commit(i)["info"] for i in range(rows.n_shards)]
    micro_batch = healthy.read_json(HARVEST)
    shutil.rmtree(healthy.path)
    if kind == "nan":
        blocks[BAD] = blocks[BAD].copy()
        blocks[BAD][5, 7] = np.nan
    elif kind == "constant":
        blocks[BAD] = np.full_like(blocks[BAD], 0.25)
    elif kind == "repeated":
        blocks[BAD] = blocks[BAD - 1]
    with Draft.open(
        workspace.directory(node), stage=node.stage, key=node.key, identity=node.identity, lineage=dict(node.record)
    ) as draft:
        draft.write_json(HARVEST, micro_batch)
        array = draft.array("acts", shape=rows.shape, dtype=config.dtype, shard_rows=rows.shard_rows)
        for i, (block, info) in enumerate(zip(blocks, infos, strict=True)):
            array.write_shard(i, block, {**info, "moments": _moments(block)})
        _damage_on_disk(array, kind)


def _moments(block: np.ndarray) -> dict:
    import torch

    return Moments.of(torch.from_numpy(block)).to_json()


def _damage_on_disk(array, kind: str) -> None:
    path, other = array.shard_path(BAD), array.shard_path(BAD + 1)
    if kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "swapped":
        aside = path.with_suffix(".aside")
        path.rename(aside)
        other.rename(path)
        aside.rename(other)
