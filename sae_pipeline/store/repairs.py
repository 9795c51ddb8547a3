"""Repair records: a shard that was made again with other bits, and what vouches for it. See docs/format.md, Repair."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from sae_pipeline.store import atomic
from sae_pipeline.store.array_format import CRC_BYTES, FORMAT
from sae_pipeline.store.errors import Damaged, NewerFormat

if TYPE_CHECKING:
    from sae_pipeline.store.sharded_array import ShardedArray

Rows = npt.NDArray[Any]

REPAIRS: Final = "repairs"
"""Folder of an artefact that holds its repair records; the one thing that may be added after publication."""


def repair_path(root: Path, array: str, i: int) -> Path:
    """Where the repair record of shard i of an array lies, if there is one."""
    return root / REPAIRS / array / f"{i}.json"


def read_repair(root: Path, array: str, i: int, commit_sha256: str) -> dict[str, Any] | None:
    """The repair record of a shard; None if there is none, so that the shard is as it was committed.

    Args:
        root: folder of the artefact.
        array: name of the array.
        i: number of the shard.
        commit_sha256: of the published commit record, whose place the repair record takes.

    Raises:
        Damaged: it is broken, or is the record of another shard.
        NewerFormat: a later version of the pipeline wrote it.
    """
    path = repair_path(root, array, i)
    try:
        record = atomic.unseal(path, path.read_bytes())
    except FileNotFoundError:
        return None
    if record["format"] > FORMAT:
        raise NewerFormat(path, record["format"], FORMAT)
    if (record["array"], record["shard"], record["replaces"]) != (array, i, commit_sha256):
        raise Damaged(path, f"is the repair record of shard {record['shard']} of {record['array']} of another artefact")
    return record


def write_repair(root: Path, record: dict[str, Any]) -> None:
    """Write a repair record, or replace an earlier one of the same shard, durably."""
    path = repair_path(root, record["array"], record["shard"])
    atomic.make_dir(path.parent)
    atomic.replace(path, atomic.seal({"format": FORMAT, **record}))


def drop_repair(root: Path, array: str, i: int) -> None:
    """Delete the repair record of a shard that is as it was committed again; no error if there is none."""
    path = repair_path(root, array, i)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        atomic.fsync_dir(path.parent)


def whole_chunks(array: ShardedArray, i: int, records: Iterable[dict[str, Any]]) -> Iterator[tuple[int, Rows]]:
    """Number and rows (storage dtype) of those inner chunks of a damaged shard that a record vouches for.

    Chunks are looked for where an array without a codec has them, so the index may be lost; of others none is found.
    The rows that pad the last chunk are left out.
    """
    rows, shape = array.rows(i), (array.chunk_rows, *array.shape[1:])
    n_bytes = array.dtype.itemsize * math.prod(shape)
    vouched = list(zip_longest(*(record["chunk_crc32c"] for record in records)))
    with contextlib.suppress(OSError), array.shard_path(i).open("rb") as file:
        for j, crcs in enumerate(vouched):
            file.seek(j * (n_bytes + CRC_BYTES))
            data = file.read(n_bytes)
            if int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little").hex() in crcs and len(data) == n_bytes:
                x = np.frombuffer(data, array.dtype).reshape(shape)
                yield j, x[: rows.stop - rows.start - j * array.chunk_rows]


def put_file(source: Path, path: Path) -> None:
    """Let `path` be the file `source`, durably and at one moment; what lay there is not written to.

    Whoever has the old file open, or linked under another name, keeps it. Linked, or copied where that cannot be.
    """
    atomic.make_dir(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
        atomic.fsync_file(temporary)
        os.replace(temporary, path)
    finally:
        # Renaming one name of a file over another of the same file leaves both.
        temporary.unlink(missing_ok=True)
    atomic.fsync_dir(path.parent)
