"""Packed shards, read and written without Zarr's array layer: the same files at the speed of the disk.

A shard is *packed* if its inner chunks are the rows' bytes followed by their crc32c, as everything without a compressor
is. Zarr copies such rows several times over and checksums them after they have left the core's cache
(`benchmarks/store.py` measures both); here they go straight between the file and the caller's buffer. Bytes and values
are those of zarr-python, and tests hold them equal.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from sae_pipeline.store.array_format import ABSENT, CRC_BYTES, ShardSeal, read_index
from sae_pipeline.store.atomic import Bytes
from sae_pipeline.store.errors import Damaged
from sae_pipeline.store.storage import Ranges

BLOCK_BYTES = 256 << 10
"""Read and checksummed at a time: small enough for the core's own cache, large enough that calls cost nothing."""


@dataclass(frozen=True)
class Packing:
    """How the rows of an array lie in its packed shards."""

    n_chunks: int
    chunk_rows: int
    row_bytes: int

    @classmethod
    def of(cls, array: Any) -> Packing | None:
        """The packing of a Zarr array's shards; None if they are compressed, or anything else but packed."""
        (codec,) = array.metadata.codecs if len(array.metadata.codecs) == 1 else (None,)
        if not isinstance(codec, ShardingCodec) or codec.index_location.value != "end":
            return None
        little = array.dtype.itemsize == 1 or (_is_little(codec.codecs[0]) and sys.byteorder == "little")
        plain = len(codec.codecs) == 2 and little and isinstance(codec.codecs[1], Crc32cCodec)
        index = len(codec.index_codecs) == 2 and _is_little(codec.index_codecs[0])
        if not plain or not index or not isinstance(codec.index_codecs[1], Crc32cCodec):
            return None
        if array.shards[1:] != array.shape[1:] or array.chunks[1:] != array.shape[1:]:
            return None
        row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        return cls(array.shards[0] // array.chunks[0], array.chunks[0], row_bytes)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the rows of one inner chunk."""
        return self.chunk_rows * self.row_bytes


def _is_little(codec: Any) -> bool:
    return isinstance(codec, BytesCodec) and codec.endian is not None and codec.endian.value == "little"


def pack(x: npt.NDArray[Any], packing: Packing) -> tuple[list[Bytes], ShardSeal]:
    """The parts of the shard file with these rows, in order, and its seal. Rows are views, not copies."""
    data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    parts, crcs = list[Bytes](), list[bytes]()
    for start in range(0, len(data), packing.chunk_bytes):
        chunk = data[start : start + packing.chunk_bytes]
        if len(chunk) < packing.chunk_bytes:
            chunk = np.concatenate([chunk, np.zeros(packing.chunk_bytes - len(chunk), np.uint8)])
        crcs.append(_crc_of(chunk))
        parts += [chunk.data, crcs[-1]]
    index = _index_of(len(crcs), packing)
    parts += [index, _crc_of(index)]
    n_bytes = len(crcs) * (packing.chunk_bytes + CRC_BYTES) + len(index) + CRC_BYTES
    return parts, ShardSeal(n_bytes, _crc_of(index).hex(), tuple(crc.hex() for crc in crcs))


def _index_of(n_present: int, packing: Packing) -> bytes:
    size = packing.chunk_bytes + CRC_BYTES
    index = np.full((packing.n_chunks, 2), ABSENT, "<u8")
    index[:n_present, 0] = np.arange(n_present) * size
    index[:n_present, 1] = size
    return index.tobytes()


def _crc_of(data: bytes | npt.NDArray[np.uint8]) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def unpack(file: Ranges, path: Path, seal: ShardSeal, packing: Packing, start: int, out: npt.NDArray[Any]) -> None:
    """Fill `out` with the rows of a packed shard from row `start` of it on.

    `out` is C-contiguous. Size, index and the checksum of every chunk read are compared with the seal; whole chunks go
    straight into `out`, the first and the last through a buffer of one chunk if only some of their rows are wanted.

    Raises:
        Damaged: the file is not as it was sealed; names the cause. What `out` then holds is undefined.
    """
    entries, index_crc32c = read_index(file, path, packing.n_chunks)
    seal.check_outside(path, file.n_bytes, index_crc32c)
    target = out.reshape(-1).view(np.uint8)
    row, done = start, 0
    while done < len(target):
        j, first = divmod(row, packing.chunk_rows)
        n_rows = min(packing.chunk_rows - first, start + len(out) - row)
        n_bytes = n_rows * packing.row_bytes
        offset, length = entries[j] if j < len(seal.chunk_crc32c) == len(entries) else (0, 0)
        if length != packing.chunk_bytes + CRC_BYTES:
            raise Damaged(path, f"chunk {j} is not there, or has another size than the array's chunks")
        into = target[done : done + n_bytes]
        chunk = into if n_rows == packing.chunk_rows else np.empty(packing.chunk_bytes, np.uint8)
        _read_chunk(file, offset, chunk, path, j, seal.chunk_crc32c[j])
        if chunk is not into:
            into[:] = chunk[first * packing.row_bytes :][:n_bytes]
        row, done = row + n_rows, done + n_bytes


def _read_chunk(file: Ranges, offset: int, chunk: npt.NDArray[np.uint8], path: Path, j: int, expected: str) -> None:
    crc, trailer = 0, bytearray(CRC_BYTES)
    for start in range(0, len(chunk), BLOCK_BYTES):
        block = chunk[start : start + BLOCK_BYTES]
        is_last = start + len(block) == len(chunk)
        file.read_into(offset + start, block.data, *([trailer] if is_last else []))
        crc = google_crc32c.extend(crc, block)
    found = crc.to_bytes(CRC_BYTES, "little")
    if found != trailer:
        raise Damaged(path, f"chunk {j} was changed: its crc32c is {found.hex()}, it says {trailer.hex()}")
    if found.hex() != expected:
        raise Damaged(path, f"chunk {j} has another checksum than was committed; it was changed or exchanged")
