"""What lies inside one array: its Zarr metadata and the checksums every shard file carries. See docs/format.md."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from sae_pipeline.store import atomic
from sae_pipeline.store.errors import Damaged, PipelineError

FORMAT = 1
MAX_CHUNK_ROWS = 4096
MAX_CHUNK_BYTES = 16 << 20
_ABSENT = 2**64 - 1
_FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class ShardSeal:
    """What a shard file must look like: its size, the crc32c of its chunk index and of every inner chunk (hex)."""

    n_bytes: int
    index_crc32c: str
    chunk_crc32c: tuple[str, ...]


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that holds a logical one: itself, or uint16 for bfloat16 (Zarr has no bfloat16)."""
    if dtype == "bfloat16":
        return np.dtype(np.uint16)
    try:
        return np.dtype(dtype)
    except TypeError:
        raise PipelineError(f"dtype {dtype!r} is unknown; use a numpy name or 'bfloat16'") from None


def decode_float32(x: npt.NDArray[Any], logical_dtype: str) -> npt.NDArray[np.float32]:
    """Exact float32 values of stored fp16, bf16 (as uint16) or fp32 values."""
    if logical_dtype not in _FLOATS:
        raise PipelineError(f"values of dtype {logical_dtype} are not activations; expected one of {_FLOATS}")
    if logical_dtype == "bfloat16":
        # bfloat16 is the upper half of a float32.
        return np.asarray(np.left_shift(x, 16, dtype=np.uint32)).view(np.float32)
    return np.asarray(x, np.float32)


def read_seal(path: Path, n_chunks: int) -> ShardSeal:
    """The seal of a shard file of `n_chunks` inner chunks; `Damaged` if it is missing or its index is broken."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise Damaged(path, "missing: the file of this shard is not there") from None
    try:
        return _read_seal(fd, path, n_chunks)
    finally:
        os.close(fd)


def _read_seal(fd: int, path: Path, n_chunks: int) -> ShardSeal:
    size, n_index = os.fstat(fd).st_size, 16 * n_chunks
    footer = os.pread(fd, n_index + 4, max(0, size - n_index - 4))
    index, crc = footer[:n_index], footer[n_index:]
    if google_crc32c.value(index) != int.from_bytes(crc, "little") or len(crc) != 4:
        raise Damaged(path, f"its chunk index ({size} bytes in the file) is cut short or changed")
    entries = np.frombuffer(index, "<u8").reshape(-1, 2).tolist()
    trailers = (os.pread(fd, 4, offset + length - 4) for offset, length in entries if offset != _ABSENT)
    return ShardSeal(size, crc.hex(), tuple(trailer.hex() for trailer in trailers))


def create_array(
    root: Path, name: str, *, shape: tuple[int, ...], dtype: str, shard_rows: int, chunk_rows: int | None = None
) -> None:
    """Write the metadata of a new array at `<root>/<name>/zarr.json`; FileExistsError if it is there."""
    stored = storage_dtype(dtype)
    if not shape or min(shape) < 1 or shard_rows < 1:
        raise PipelineError(f"array {name}: shape {shape} and shard_rows {shard_rows} must be positive")
    row_bytes = stored.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    chunk_rows = chunk_rows or default_chunk_rows(shard_rows, row_bytes)
    if shard_rows % chunk_rows:
        raise PipelineError(f"array {name}: chunk_rows {chunk_rows} does not divide shard_rows {shard_rows}")
    memory = MemoryStore()
    zarr.create_array(
        memory,
        shape=shape,
        dtype=stored,
        chunks=(chunk_rows, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=0,
        attributes={"logical_dtype": dtype if dtype == "bfloat16" else stored.name},
    )
    # Zarr would not make its file durable, so the bytes go through our own writer.
    atomic.make_dir(root / name)
    atomic.create(root / name / "zarr.json", memory._store_dict["zarr.json"].to_bytes())


def default_chunk_rows(shard_rows: int, row_bytes: int) -> int:
    """The largest divisor of `shard_rows` that keeps an inner chunk within 4096 rows and 16 MiB."""
    limit = min(shard_rows, MAX_CHUNK_ROWS, max(1, MAX_CHUNK_BYTES // row_bytes))
    best = next(rows for rows in range(limit, 0, -1) if shard_rows % rows == 0)
    if best * 16 < limit:
        raise PipelineError(
            f"shard_rows {shard_rows} has no divisor near {limit} to be the inner chunk; use a multiple of 64"
        )
    return best
