"""One sharded Zarr v3 array whose shards count only once they are committed.

A shard is written whole, once, by one writer: bytes durable first, then its commit record by create-if-absent. The
record repeats the checksums inside the shard file, so a shard that is missing, cut short, changed or exchanged with
another is told from a good one; plain Zarr would read a missing shard as zeros.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer.cpu import NDBuffer

from sae_pipeline.store import atomic, direct
from sae_pipeline.store.array_format import FORMAT, METADATA, ShardSeal, decode_float32, encode_shard, read_seal
from sae_pipeline.store.errors import Damaged, NewerFormat, PipelineError
from sae_pipeline.store.repairs import read_repair
from sae_pipeline.store.storage import LOCAL, Ranges, Storage


class ShardedArray:
    """Rows of one array, cut into shards of `shard_rows`; the last may be shorter. Make one with `Draft` or `Artefact`.

    The array lies at `<root>/<name>/` and plain `zarr.open` reads it; commit records lie at
    `<root>/commits/<name>/<shard>.json`. `listing` is the published list of shards, or None in a draft, which passes
    `before_write`, a function that raises when nothing may be written any more, and `kept`, the number of first shards
    that it is going to publish (None: all).
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        listing: list[dict[str, Any]] | None = None,
        before_write: Callable[[], None] | None = None,
        kept: int | None = None,
        storage: Storage = LOCAL,
    ) -> None:
        self.name, self._listing, self._before_write = name, listing, before_write
        self._kept = kept if listing is None else len(listing)
        self._path, self._commits, self._storage = root / name, root / "commits" / name, storage
        self._zarr = self._open_zarr()
        self._packing = direct.Packing.of(self._zarr)
        self.shape: tuple[int, ...] = tuple(self._zarr.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._zarr.dtype)
        self.logical_dtype = str(self._zarr.attrs["logical_dtype"])
        self.shard_rows: int = self._zarr.shards[0]
        self.chunk_rows: int = self._zarr.chunks[0]
        self._seals: dict[int, ShardSeal] = {}
        self._prepared: set[Path] = set()

    @property
    def n_rows(self) -> int:
        """Number of rows of the whole array."""
        return self.shape[0]

    @property
    def n_shards(self) -> int:
        """Number of shards, the last one perhaps shorter."""
        return -(-self.n_rows // self.shard_rows)

    @property
    def n_kept(self) -> int:
        """Number of shards that are or will be here, the first ones: fewer than `n_shards` under a window."""
        return self.n_shards if self._kept is None else self._kept

    def rows(self, i: int) -> slice:
        """The rows of shard i."""
        if not 0 <= i < self.n_shards:
            raise PipelineError(f"{self._path}: shard {i} does not exist; there are {self.n_shards}")
        return slice(i * self.shard_rows, min((i + 1) * self.shard_rows, self.n_rows))

    def shard_path(self, i: int) -> Path:
        """The file of shard i."""
        return self._path.joinpath("c", str(i), *["0"] * (len(self.shape) - 1))

    def commit_path(self, i: int) -> Path:
        """The commit record of shard i."""
        return self._commits / f"{i}.json"

    def is_committed(self, i: int) -> bool:
        """Whether shard i counts: its bytes are durable and its record exists."""
        return self._storage.exists(self.commit_path(i))

    def write_shard(self, i: int, x: npt.NDArray[Any], info: dict[str, Any] | None = None) -> bool:
        """Write and commit shard i; False, and nothing changes, if it is committed already.

        `x` holds the shard's rows in the storage dtype (see `dtype`); `info` is any JSON and is kept in the record.
        """
        rows = self.rows(i)
        self._must_write()
        expected = (rows.stop - rows.start, *self.shape[1:])
        if x.shape != expected or x.dtype != self.dtype:
            raise PipelineError(f"{self._path}: shard {i} needs {expected} of {self.dtype}, got {x.shape} of {x.dtype}")
        if self.is_committed(i):
            return False
        parts, seal = direct.pack(x, self._packing) if self._packing else encode_shard(self._metadata(), x)
        self._prepare(i)
        self._storage.put(self.shard_path(i), parts)
        record = {
            "format": FORMAT,
            "array": self.name,
            "shard": i,
            "rows": [rows.start, rows.stop],
            "bytes": seal.n_bytes,
            "index_crc32c": seal.index_crc32c,
            "chunk_crc32c": list(seal.chunk_crc32c),
            "info": info or {},
        }
        self._commit(i, record)
        return True

    def adopt(self, i: int, other: ShardedArray) -> bool:
        """Commit shard i of another array as this one's: the same rows, without copying where the file system can.

        Every chunk of the other's shard is read and verified first. Its file is linked (copied where that cannot be)
        and made durable before its record, which is the other's, is created; deleting either array leaves the other
        whole. False, and nothing changes, if shard i is committed already.

        Raises:
            Damaged: the other's shard is not as it was committed; nothing was taken.
            PipelineError: the arrays' names, types or sizes differ, shard i has other rows there, or this array is
                read-only.
        """
        self._must_write()
        here, there = self._form(i), other._form(i)
        if here != there:
            raise PipelineError(f"{self._path}: shard {i} is {here}, in {other._path} it is {there}; not the same rows")
        if self.is_committed(i):
            return False
        other.read_shard(i)
        record, path = other.commit(i), self.shard_path(i)
        self._prepare(i)
        self._storage.copy(other.shard_path(i), path)
        if self._inspect(i) != ShardSeal.of(record):
            raise Damaged(path, f"is not the shard it was copied from, {other.shard_path(i)}; try again")
        self._commit(i, record)
        return True

    def evict(self, i: int) -> None:
        """Delete shard i of a draft, if it is there: its record first, so that a crash leaves it uncommitted."""
        self._must_write()
        self._seals.pop(i, None)
        self._storage.remove(self.commit_path(i))
        self._storage.remove(self.shard_path(i))

    def _form(self, i: int) -> tuple[object, ...]:
        """What must be equal for a shard of one array to be one of another: name, rows, shape and type, codecs."""
        rows = self.rows(i)
        sizes = (self.shard_rows, self.chunk_rows)
        codecs = tuple(codec.to_dict()["name"] for codec in self._zarr.metadata.codecs[0].codecs)
        return (self.name, (rows.start, rows.stop), self.shape[1:], self.logical_dtype, sizes, codecs)

    def commit(self, i: int) -> dict[str, Any]:
        """The commit record of shard i (its `info` is the writer's); `Damaged` if it is missing or not as written."""
        path, (a, b) = self.commit_path(i), (self.rows(i).start, self.rows(i).stop)
        if i >= self.n_kept:
            raise PipelineError(
                f"{self._path}: shard {i} is not kept, only the first {self.n_kept} of {self.n_shards} are, because "
                "activations.retain is not `all`; the others are made for training and are gone afterwards"
            )
        try:
            data = self._storage.read(path)
        except FileNotFoundError:
            raise Damaged(path, f"missing: shard {i} was never committed, or its record was deleted") from None
        record = atomic.unseal(path, data)
        if record["format"] > FORMAT:
            raise NewerFormat(path, record["format"], FORMAT)
        if (record["array"], record["shard"], record["rows"]) != (self.name, i, [a, b]):
            raise Damaged(path, f"is the record of shard {record['shard']} of {record['array']}, not of {i}")
        if self._listing is not None and hashlib.sha256(data).hexdigest() != self._listing[i]["commit_sha256"]:
            raise Damaged(path, "is not the record that was published")
        return record

    def repair(self, i: int) -> dict[str, Any] | None:
        """The record of the shard that was made again in place of shard i; None if that is as it was committed."""
        if self._listing is None:
            return None
        return read_repair(self._path.parent, self.name, i, self._listing[i]["commit_sha256"])

    def check_shard(self, i: int) -> None:
        """Compare a shard's size and stored checksums with its record, without reading the rows; else `Damaged`."""
        path, expected = self.shard_path(i), self._seal(i)
        found = self._inspect(i)
        expected.check_outside(path, found.n_bytes, found.index_crc32c)
        if found != expected:
            raise Damaged(path, "its checksums are not the committed ones; it was changed or exchanged with another")

    def read_shard(self, i: int) -> npt.NDArray[Any]:
        """All rows of shard i in the storage dtype, verified."""
        return self.read(self.rows(i).start, self.rows(i).stop)

    def read(self, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows `start` to `stop` in the storage dtype, every chunk's crc32c verified; `Damaged` names file and cause.

        `out`, if given, is a C-contiguous array of the result's shape and dtype to fill: reusing one saves the page
        faults of a large new one.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise PipelineError(f"{self._path}: rows {start} to {stop} are outside 0 to {self.n_rows}")
        shape = (stop - start, *self.shape[1:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise PipelineError(f"{self._path}: `out` must be a C-contiguous {self.dtype} array of shape {shape}")
        for i, a, b in self._pieces(start, stop):
            self._read_piece(i, a, b, out[a - start : b - start])
        return out

    def read_float32(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows as float32, exactly (fp16, bf16 and fp32 arrays), verified."""
        return decode_float32(self.read(start, stop), self.logical_dtype)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        while start < stop:
            i = start // self.shard_rows
            end = min(stop, self.rows(i).stop)
            yield i, start, end
            start = end

    def _read_piece(self, i: int, start: int, stop: int, out: npt.NDArray[Any]) -> None:
        if self._packing:
            seal = self._seal(i)
            with self._shard(i) as file:
                direct.unpack(file, self.shard_path(i), seal, self._packing, start - i * self.shard_rows, out)
            return
        self.check_shard(i)
        try:
            self._zarr.get_basic_selection(slice(start, stop), out=NDBuffer.from_numpy_array(out))
        except (ValueError, OSError) as error:
            raise Damaged(self.shard_path(i), f"cannot be read: {error}") from error

    @contextlib.contextmanager
    def _shard(self, i: int) -> Iterator[Ranges]:
        """The file of shard i; that it is not there, or cannot be read to its end, is damage that names it."""
        path = self.shard_path(i)
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self._storage.ranges(path))
            except FileNotFoundError:
                raise Damaged(path, "missing: the file of this shard is not there") from None
            try:
                yield file
            except (OSError, EOFError) as error:
                raise Damaged(path, f"cannot be read: {error}") from error

    def _open_zarr(self) -> Any:
        try:
            found = zarr.open_array(self._storage.for_zarr(self._path), mode="r")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise Damaged(self._path / METADATA, f"cannot be opened as a Zarr array: {error}") from error
        if found.shards is None or "logical_dtype" not in found.attrs:
            raise Damaged(self._path / METADATA, "is not a sharded array of this pipeline")
        return found

    def _metadata(self) -> bytes:
        return self._storage.read(self._path / METADATA)

    def _must_write(self) -> None:
        if self._before_write is None:
            raise PipelineError(f"{self._path}: this array is read-only; what is published never changes")
        self._before_write()

    def _prepare(self, i: int) -> None:
        """Make the folders of a shard and its record; what was made durable once is not again."""
        shard_dir = self.shard_path(i).parent
        folders = {self._path, self._path / "c", shard_dir, self._commits.parent, self._commits} - self._prepared
        self._storage.prepare(sorted(folders))
        self._prepared |= folders

    def _commit(self, i: int, record: dict[str, Any]) -> None:
        with contextlib.suppress(FileExistsError):  # another writer made the same shard meanwhile
            self._storage.create(self.commit_path(i), atomic.seal(record))

    def _seal(self, i: int) -> ShardSeal:
        if i not in self._seals:
            record = self.commit(i)
            self._seals[i] = ShardSeal.of(self.repair(i) or record)
        return self._seals[i]

    def _inspect(self, i: int) -> ShardSeal:
        with self._shard(i) as file:
            return read_seal(file, self.shard_path(i), self.shard_rows // self.chunk_rows)
