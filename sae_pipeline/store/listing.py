"""What a published artefact lists of its shards and files, each checked or made durable as it is listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_pipeline.store import atomic
from sae_pipeline.store.errors import PipelineError
from sae_pipeline.store.sharded_array import ShardedArray


def list_shards(array: ShardedArray) -> list[dict[str, Any]]:
    """One entry per shard kept; PipelineError if one is not committed, `Damaged` if one is not as committed."""
    missing = [i for i in range(array.n_kept) if not array.is_committed(i)]
    if missing:
        some = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise PipelineError(f"array {array.name}: {len(missing)} of {array.n_kept} shards are not committed ({some})")
    return [_list_shard(array, i) for i in range(array.n_kept)]


def _list_shard(array: ShardedArray, i: int) -> dict[str, Any]:
    array.check_shard(i)
    record, path = array.commit(i), array.commit_path(i)
    return {
        "bytes": record["bytes"],
        "index_crc32c": record["index_crc32c"],
        "commit_bytes": path.stat().st_size,
        "commit_sha256": atomic.sha256_file(path),
    }


def list_file(path: Path) -> dict[str, Any]:
    """Size and hash of a file, which is durable afterwards."""
    # Libraries write safetensors and parquet here themselves; durability is ours to give.
    atomic.fsync_file(path)
    return {"bytes": path.stat().st_size, "sha256": atomic.sha256_file(path)}
