"""What lies inside one array: its Zarr metadata and the checksums every shard file carries. See docs/format.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from sae_pipeline.store.atomic import Bytes
from sae_pipeline.store.errors import Damaged, PipelineError
from sae_pipeline.store.storage import LOCAL, InMemory, Ranges, Storage

FORMAT = 1
MAX_CHUNK_ROWS = 4096
MAX_CHUNK_BYTES = 16 << 20
ABSENT = 2**64 - 1
CRC_BYTES = 4
METADATA = "zarr.json"
CODECS: Final[dict[str, tuple[Any, ...]]] = {
    "none": (),
    "zstd": (ZstdCodec(level=1),),
    "blosc-lz4": (BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),),
}
"""What may be applied to a chunk before its crc32c; none by default (benchmarks/store.py: what they save and cost)."""
_FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class ShardSeal:
    """What a shard file must look like: its size, the crc32c of its chunk index and of every inner chunk (hex)."""

    n_bytes: int
    index_crc32c: str
    chunk_crc32c: tuple[str, ...]

    def check_outside(self, path: Path, n_bytes: int, index_crc32c: str) -> None:
        """Compare the size and the index checksum of a file; `Damaged` if they are not as sealed."""
        if n_bytes != self.n_bytes:
            raise Damaged(path, f"has {n_bytes} bytes, {self.n_bytes} were committed")
        if index_crc32c != self.index_crc32c:
            raise Damaged(path, "its checksums are not the committed ones; it was changed or exchanged with another")

    @classmethod
    def of(cls, record: dict[str, Any]) -> ShardSeal:
        """The seal that a commit record or a repair record vouches for."""
        return cls(record["bytes"], record["index_crc32c"], tuple(record["chunk_crc32c"]))


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


def read_seal(file: Ranges, path: Path, n_chunks: int) -> ShardSeal:
    """The seal of an open shard file with places for `n_chunks` inner chunks; `Damaged` if its index is broken."""
    entries, crc = read_index(file, path, n_chunks)
    trailers = [bytearray(CRC_BYTES) for _ in entries]
    for (offset, length), trailer in zip(entries, trailers, strict=True):
        file.read_into(offset + length - CRC_BYTES, trailer)
    return ShardSeal(file.n_bytes, crc, tuple(trailer.hex() for trailer in trailers))


def read_index(file: Ranges, path: Path, n_chunks: int) -> tuple[list[tuple[int, int]], str]:
    """(offset, length) of every inner chunk that is there, and the crc32c of the index (hex); `Damaged` if broken."""
    index, crc = bytearray(16 * n_chunks), bytearray(CRC_BYTES)
    offset = file.n_bytes - len(index) - CRC_BYTES
    if offset >= 0:
        file.read_into(offset, index, crc)
    if offset < 0 or google_crc32c.value(bytes(index)) != int.from_bytes(crc, "little"):
        raise Damaged(path, f"its chunk index ({file.n_bytes} bytes in the file) is cut short or changed")
    entries = np.frombuffer(index, "<u8").reshape(-1, 2).tolist()
    return [(offset, length) for offset, length in entries if offset != ABSENT], crc.hex()


def create_array(
    root: Path,
    name: str,
    *,
    shape: tuple[int, ...],
    dtype: str,
    shard_rows: int,
    chunk_rows: int | None = None,
    codec: str = "none",
    storage: Storage = LOCAL,
) -> None:
    """Write the metadata of a new array at `<root>/<name>/zarr.json`; FileExistsError if it is there.

    `codec` is one of `CODECS`. Whatever it is, the crc32c of what is stored ends every chunk.
    """
    stored = storage_dtype(dtype)
    if not shape or min(shape) < 1 or shard_rows < 1:
        raise PipelineError(f"array {name}: shape {shape} and shard_rows {shard_rows} must be positive")
    if codec not in CODECS:
        raise PipelineError(f"array {name}: codec {codec!r} is unknown; use one of {', '.join(CODECS)}")
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
        compressors=[*CODECS[codec], Crc32cCodec()],
        fill_value=0,
        attributes={"logical_dtype": dtype if dtype == "bfloat16" else stored.name},
    )
    # Zarr would not make its file durable, so the bytes go through our own writer.
    storage.prepare([root / name])
    storage.create(root / name / METADATA, memory._store_dict[METADATA].to_bytes())


def encode_shard(zarr_json: bytes, x: npt.NDArray[Any]) -> tuple[list[Bytes], ShardSeal]:
    """The one part of the file that Zarr makes of the rows of a shard, in an array with this metadata; and its seal."""
    metadata = json.loads(zarr_json) | {"shape": x.shape}
    store: dict[str, Any] = {METADATA: Buffer.from_bytes(json.dumps(metadata).encode())}
    array = zarr.open_array(MemoryStore(store), mode="r+")
    # Zarr would leave out chunks of zeros, and one that is not there must always mean damage.
    array.with_config({"write_empty_chunks": True})[...] = x
    (data,) = (value.to_bytes() for name, value in store.items() if name != METADATA)
    n_chunks = array.shards[0] // array.chunks[0]
    return [data], read_seal(InMemory(data), Path(METADATA), n_chunks)


def default_chunk_rows(shard_rows: int, row_bytes: int) -> int:
    """The largest divisor of `shard_rows` that keeps an inner chunk within 4096 rows and 16 MiB."""
    limit = min(shard_rows, MAX_CHUNK_ROWS, max(1, MAX_CHUNK_BYTES // row_bytes))
    best = next(rows for rows in range(limit, 0, -1) if shard_rows % rows == 0)
    if best * 16 < limit:
        raise PipelineError(
            f"shard_rows {shard_rows} has no divisor near {limit} to be the inner chunk; use a multiple of 64"
        )
    return best
