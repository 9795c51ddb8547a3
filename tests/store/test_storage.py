"""What `Storage` offers is all that an array needs: here it lies in a dictionary, as it might on an object store.

That the local disk's are durable and whole is for test_store_faults.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.abc.store import Store
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from sae_pipeline.store import Damaged, PipelineError, ShardedArray
from sae_pipeline.store.array_format import create_array
from sae_pipeline.store.atomic import Bytes
from sae_pipeline.store.storage import LOCAL, InMemory, Ranges, Storage

ROWS_XD = np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)


class Bucket:
    """An object store in a dictionary: no folders, no links, objects whole or absent."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def prepare(self, folders: Iterable[Path]) -> None:
        pass

    def create(self, path: Path, data: bytes) -> None:
        if self.objects.setdefault(str(path), data) is not data:
            raise FileExistsError(path)

    def put(self, path: Path, parts: Sequence[Bytes]) -> None:
        self.objects[str(path)] = b"".join(bytes(part) for part in parts)

    def copy(self, source: Path, target: Path) -> None:
        self.objects[str(target)] = self.objects[str(source)]

    def remove(self, path: Path) -> None:
        self.objects.pop(str(path), None)

    def exists(self, path: Path) -> bool:
        return str(path) in self.objects

    def read(self, path: Path) -> bytes:
        if not self.exists(path):
            raise FileNotFoundError(path)
        return self.objects[str(path)]

    @contextlib.contextmanager
    def ranges(self, path: Path) -> Iterator[Ranges]:
        yield InMemory(self.read(path))

    def for_zarr(self, folder: Path) -> Store:
        below = {name: data for name, data in self.objects.items() if name.startswith(f"{folder}/")}
        return MemoryStore({name[len(f"{folder}/") :]: Buffer.from_bytes(data) for name, data in below.items()})


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_an_array_on_an_object_store(codec: str) -> None:
    bucket, root = Bucket(), Path("bucket/artefact")
    as_storage: Storage = bucket

    def array(name: str, **options: Any) -> ShardedArray:
        form: dict[str, Any] = {"shape": ROWS_XD.shape, "dtype": "float32", "shard_rows": 20, "chunk_rows": 5}
        create_array(root / name, "acts", **form, codec=codec, storage=as_storage)
        return ShardedArray(root / name, "acts", before_write=lambda: None, storage=as_storage)

    one, other = array("one"), array("other")
    for i in range(3):
        assert one.write_shard(i, ROWS_XD[one.rows(i)], {"i": i})
        assert not one.write_shard(i, ROWS_XD[one.rows(i)])
        assert other.adopt(i, one)
    # Zarr's own reading, which a codec needs, sees what was there when the array was opened.
    other = ShardedArray(root / "other", "acts", before_write=lambda: None, storage=as_storage)
    np.testing.assert_array_equal(other.read(3, 49), ROWS_XD[3:49])
    assert {Path(name).parts[2] for name in bucket.objects} == {"one", "other"}
    other.evict(1)
    assert [other.is_committed(i) for i in range(3)] == [True, False, True]
    del bucket.objects[str(other.shard_path(0))]
    with pytest.raises(Damaged, match="c/0/0: missing"):
        other.read(0, 1)


def test_parts_become_one_file_however_little_the_system_takes(tmp_path: Path, monkeypatch: Any) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    parts: list[Bytes] = [b"0123", b"", np.arange(10, dtype=np.uint16).data, bytearray(b"ab"), memoryview(b"cdefg")]
    LOCAL.put(tmp_path / "a", parts)
    assert (tmp_path / "a").read_bytes() == b"".join(bytes(part) for part in parts)
    LOCAL.put(tmp_path / "a", [b"x"])
    assert (os.listdir(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"x")


def test_a_full_disk_leaves_the_shard_uncommitted_and_nothing_behind(tmp_path: Path, monkeypatch: Any) -> None:
    create_array(tmp_path, "acts", shape=(50, 3), dtype="float32", shard_rows=20)
    array = ShardedArray(tmp_path, "acts", before_write=lambda: None)

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            array.write_shard(0, ROWS_XD[:20])
    assert not array.is_committed(0) and os.listdir(array.shard_path(0).parent) == []
    assert array.write_shard(0, ROWS_XD[:20])
    np.testing.assert_array_equal(array.read(0, 20), ROWS_XD[:20])


@pytest.mark.parametrize("reader", ["disk", "memory"])
def test_a_range_beyond_the_end_is_refused(tmp_path: Path, reader: str) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with LOCAL.ranges(tmp_path / "a") as file:
        file = file if reader == "disk" else InMemory(b"0123456789")
        first, second = bytearray(3), bytearray(4)
        file.read_into(2, first, bytearray(), second)
        assert (file.n_bytes, first, second) == (10, b"234", b"5678")
        with pytest.raises(EOFError, match="end"):
            file.read_into(8, first)


def test_nothing_is_removed_twice(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    LOCAL.remove(tmp_path / "a")
    LOCAL.remove(tmp_path / "a")
    assert os.listdir(tmp_path) == []
    with pytest.raises(PipelineError, match="read-only"):
        create_array(tmp_path, "acts", shape=(4, 3), dtype="float32", shard_rows=4)
        ShardedArray(tmp_path, "acts").evict(0)
