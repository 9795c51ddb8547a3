"""Packed shards: byte for byte what zarr-python writes, and value for value what it reads, whoever wrote them."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from test_store_arrays import arrays, draft_at
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from sae_pipeline.store import Damaged, direct, storage
from sae_pipeline.store.array_format import CODECS, ShardSeal, create_array, read_seal
from sae_pipeline.store.direct import Packing

ROWS_XD = np.random.default_rng(3).standard_normal((40, 5)).astype(np.float16)


def zarr_array(path: Path, x: np.ndarray, shard_rows: int, chunk_rows: int) -> Any:
    array = zarr.create_array(
        path, shape=x.shape, dtype=x.dtype, chunks=(chunk_rows, *x.shape[1:]), shards=(shard_rows, *x.shape[1:]),
        filters=None, compressors=[Crc32cCodec()], fill_value=0, config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = x
    return array


def unpacked(path: Path, packing: Packing, start: int, out: np.ndarray, seal: ShardSeal | None = None) -> np.ndarray:
    with storage.LOCAL.ranges(path) as file:
        direct.unpack(file, path, seal or read_seal(file, path, packing.n_chunks), packing, start, out)
    return out


@settings(max_examples=25, deadline=None)
@given(arrays())
def test_a_shard_has_the_bytes_that_zarr_python_gives_it(tmp_path_factory: Any, case: Any) -> None:
    x, shard_rows, chunk_rows, dtype = case
    path = tmp_path_factory.mktemp("direct")
    with draft_at(path / "ours") as draft:
        array = draft.array("x", shape=x.shape, dtype=dtype, shard_rows=shard_rows, chunk_rows=chunk_rows)
        for i in range(array.n_shards):
            array.write_shard(i, x[array.rows(i)])
            array.check_shard(i)  # the seal was made without reading the file
    theirs = zarr_array(path / "theirs", x, array.shard_rows, array.chunk_rows)
    assert Packing.of(theirs) is not None
    for i in range(array.n_shards):
        ours = array.shard_path(i)
        assert ours.read_bytes() == (path / "theirs" / ours.relative_to(path / "ours" / "x")).read_bytes()


def test_rows_that_lie_otherwise_in_memory_are_stored_alike(tmp_path: Path) -> None:
    with draft_at(tmp_path / "a") as draft:
        for name, x in (("x", ROWS_XD), ("y", np.asfortranarray(ROWS_XD)), ("z", np.repeat(ROWS_XD, 2, 0)[::2])):
            draft.array(name, shape=x.shape, dtype="float16", shard_rows=40).write_shard(0, x)
    files = [(tmp_path / "a" / name / "c" / "0" / "0").read_bytes() for name in "xyz"]
    assert files[0] == files[1] == files[2]


def scattered(x: np.ndarray, packing: Packing, order: tuple[int, ...], gap: int) -> bytes:
    """A shard whose chunks lie in another order with bytes between them, as other writers may leave it."""
    parts, seal = direct.pack(x, packing)
    size, data, offsets = packing.chunk_bytes + 4, b"", {}
    whole = b"".join(bytes(part) for part in parts)
    for j in order:
        data += b"\xee" * gap
        offsets[j] = len(data)
        data += whole[j * size : (j + 1) * size]
    index = np.array([[offsets[j], size] for j in range(len(order))], "<u8").tobytes()
    assert len(seal.chunk_crc32c) == len(order)
    return data + index + direct._crc_of(index)


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_chunks_in_any_order_are_read(tmp_path: Path, order: tuple[int, ...], gap: int) -> None:
    packing, path = Packing(4, 10, 10), tmp_path / "shard"
    path.write_bytes(scattered(ROWS_XD, packing, order, gap))
    for start, stop in itertools.combinations((0, 1, 9, 10, 25, 30, 40), 2):
        out = np.empty((stop - start, 5), np.float16)
        np.testing.assert_array_equal(unpacked(path, packing, start, out), ROWS_XD[start:stop])


def test_shards_of_zarr_python_are_read_in_any_part(tmp_path: Path) -> None:
    array = zarr_array(tmp_path / "a", ROWS_XD, 24, 8)
    packing = Packing.of(array)
    assert packing == Packing(3, 8, 10)
    for start in range(16):
        for stop in range(start + 1, 17):
            out = np.empty((stop - start, 5), np.float16)
            unpacked(tmp_path / "a" / "c" / "1" / "0", packing, start, out)
            np.testing.assert_array_equal(out, ROWS_XD[24 + start : 24 + stop])


def test_blocks_within_a_chunk_and_short_reads_are_put_together(tmp_path: Path, monkeypatch: Any) -> None:
    array = zarr_array(tmp_path / "a", ROWS_XD, 40, 20)
    packing, real, path = Packing.of(array), os.preadv, tmp_path / "a" / "c" / "0" / "0"
    assert packing is not None
    monkeypatch.setattr(direct, "BLOCK_BYTES", 64)  # 200 bytes a chunk: three blocks and a part of one
    calls = 0

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        return real(fd, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", short)
    np.testing.assert_array_equal(unpacked(path, packing, 3, np.empty((35, 5), np.float16)), ROWS_XD[3:38])
    assert calls > 60


def test_every_flipped_bit_is_found_and_the_file_named(tmp_path: Path) -> None:
    packing, path = Packing(2, 20, 10), tmp_path / "shard"
    parts, seal = direct.pack(ROWS_XD, packing)
    data, out = b"".join(bytes(part) for part in parts), np.empty_like(ROWS_XD)
    for position, bit in itertools.product(range(len(data)), range(8)):
        changed = bytearray(data)
        changed[position] ^= 1 << bit
        with pytest.raises(Damaged) as found:
            direct.unpack(storage.InMemory(bytes(changed)), path, seal, packing, 0, out)
        assert found.value.path == path
    direct.unpack(storage.InMemory(data), path, seal, packing, 0, out)
    np.testing.assert_array_equal(out, ROWS_XD)


def test_what_the_disk_refuses_to_read_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    with draft_at(tmp_path / "a") as draft:
        array = draft.array("x", shape=(40, 5), dtype="float16", shard_rows=40)
        array.write_shard(0, ROWS_XD)

        def broken(fd: int, buffers: object, offset: int) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(Damaged, match=r"x/c/0/0: cannot be read: .*Input/output error"):
            array.read(0, 1)


FORMS: dict[str, dict[str, Any]] = {
    "compressed": {"codecs": [BytesCodec(), ZstdCodec(), Crc32cCodec()]},
    "without checksums": {"codecs": [BytesCodec()]},
    "big endian": {"codecs": [BytesCodec(endian="big"), Crc32cCodec()]},
    "index at the start": {"codecs": [BytesCodec(), Crc32cCodec()], "index_location": "start"},
    "index without a checksum": {"codecs": [BytesCodec(), Crc32cCodec()], "index_codecs": [BytesCodec()]},
    "columns cut": {"codecs": [BytesCodec(), Crc32cCodec()], "chunk_shape": (4, 2)},
}


@pytest.mark.parametrize("form", FORMS)
def test_any_other_form_is_not_taken_for_packed(form: str) -> None:
    sharding = ShardingCodec(**({"chunk_shape": (4, 4)} | FORMS[form]))
    array = zarr.create(store={}, shape=(16, 4), chunks=(8, 4), dtype="float16", codecs=[sharding], zarr_format=3)
    assert Packing.of(array) is None
    assert Packing.of(zarr.create_array(store={}, shape=(16, 4), chunks=(8, 4), dtype="float16")) is None


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "none"])
def test_compressed_shards_are_written_and_read_by_zarr(tmp_path: Path, codec: str) -> None:
    x = np.zeros((70, 6), np.float32)
    x[5:9] = 1.5
    with draft_at(tmp_path / "a") as draft:
        create_array(tmp_path / "a", "x", shape=x.shape, dtype="float32", shard_rows=32, chunk_rows=8, codec=codec)
        array = draft.array("x")
        for i in range(3):
            assert array.write_shard(i, x[array.rows(i)], {"i": i})
        artefact = draft.publish({})
    assert artefact.n_bytes < x.nbytes + 6000
    read = artefact.array("x")
    np.testing.assert_array_equal(read.read(3, 68), x[3:68])
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a" / "x", mode="r")[...], x)
    assert len(read.commit(2)["chunk_crc32c"]) == 1  # 6 rows of the last shard; chunks of zeros are there
    path = read.shard_path(0)
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        with pytest.raises(Damaged, match="x/c/0/0"):
            read.read(0, 32)


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'lzma' is unknown; use one of none, zstd, blosc-lz4"):
        create_array(tmp_path, "x", shape=(4, 4), dtype="float32", shard_rows=4, codec="lzma")
    assert not (tmp_path / "x").exists()
