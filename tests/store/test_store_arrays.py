from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.store import Draft, PipelineError, decode_float32
from sae_pipeline.store.array_format import default_chunk_rows


def draft_at(path: Path) -> Draft:
    return Draft.open(path, stage="s", key="k", identity="1" * 64, lineage={})


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, int, int | None, str]:
    shape = (draw(st.integers(1, 70)), *draw(st.sampled_from([(), (3,), (2, 5)])))
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float32", "float64", "int64", "int32", "bool", "uint8"]))
    chunk_rows = draw(st.one_of(st.none(), st.integers(1, 9)))
    shard_rows = draw(st.integers(1, 90)) if chunk_rows is None else chunk_rows * draw(st.integers(1, 6))
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    count = int(np.prod(shape))
    raw = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 2, count * stored.itemsize, dtype=np.uint8)
    return raw.view(stored).reshape(shape), shard_rows, chunk_rows, dtype


@settings(max_examples=15, deadline=None)
@given(arrays(), st.randoms(use_true_random=False))
def test_what_is_written_in_any_order_is_read_back_and_by_plain_zarr(tmp_path_factory, case, random) -> None:
    x, shard_rows, chunk_rows, dtype = case
    path = tmp_path_factory.mktemp("arrays") / "a"
    with draft_at(path) as draft:
        array = draft.array("x", shape=x.shape, dtype=dtype, shard_rows=shard_rows, chunk_rows=chunk_rows)
        shards = list(range(array.n_shards))
        random.shuffle(shards)
        for i in shards:
            assert array.write_shard(i, x[array.rows(i)], {"i": i})
        artefact = draft.publish({})
    read = artefact.array("x")
    assert (read.shape, read.logical_dtype, read.dtype) == (x.shape, dtype, x.dtype)
    start, stop = sorted((random.randint(0, len(x)), random.randint(0, len(x))))
    np.testing.assert_array_equal(read.read(start, stop), x[start:stop])
    np.testing.assert_array_equal(np.concatenate([read.read_shard(i) for i in range(read.n_shards)]), x)
    np.testing.assert_array_equal(zarr.open_array(path / "x", mode="r")[...], x)
    assert [read.commit(i)["info"] for i in range(read.n_shards)] == [{"i": i} for i in range(read.n_shards)]
    on_disk = sum(f.stat().st_size for f in path.rglob("*") if f.is_file() and f.name not in (".lock", "artefact.json"))
    assert artefact.n_bytes == on_disk


def test_the_format_is_uncompressed_crc32c_chunks_in_whole_shards(tmp_path: Path) -> None:
    zeros = np.zeros((8192, 4), np.float16)  # all fill value: must be stored, not left out
    with draft_at(tmp_path / "a") as draft:
        array = draft.array("x", shape=zeros.shape, dtype="float16", shard_rows=8192)
        array.write_shard(0, zeros)
    metadata = zarr.open_array(tmp_path / "a" / "x", mode="r").metadata.to_dict()
    sharding = metadata["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "crc32c"]
    assert (array.chunk_rows, array.shard_rows) == (4096, 8192)
    assert array.shard_path(0).stat().st_size == zeros.nbytes + 2 * 4 + 2 * 16 + 4


def test_float16_bfloat16_and_float32_decode_exactly() -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    for dtype, stored in (("float16", patterns.view(np.float16)), ("bfloat16", patterns)):
        expected = torch.from_numpy(patterns.copy()).view(getattr(torch, dtype)).float().numpy()
        decoded = decode_float32(stored, dtype)
        np.testing.assert_array_equal(np.isnan(decoded), np.isnan(expected))
        finite = ~np.isnan(expected)
        np.testing.assert_array_equal(decoded[finite].view(np.uint32), expected[finite].view(np.uint32))
    singles = np.array([1e-45, -0.0, 3.4e38, np.inf, 0.1], np.float32)
    np.testing.assert_array_equal(decode_float32(singles, "float32").view(np.uint32), singles.view(np.uint32))
    with pytest.raises(PipelineError, match="int64"):
        decode_float32(np.arange(3), "int64")


def test_read_float32_and_out_buffer(tmp_path: Path) -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    with draft_at(tmp_path / "a") as draft:
        array = draft.array("x", shape=(50, 4), dtype="bfloat16", shard_rows=20)
        for i in range(3):
            array.write_shard(i, x.view(torch.uint16).numpy()[array.rows(i)])
        np.testing.assert_array_equal(array.read_float32(3, 47), x[3:47].float().numpy())
        out = np.full((44, 4), 7, np.uint16)
        assert array.read(3, 47, out) is out
        np.testing.assert_array_equal(out, x.view(torch.uint16).numpy()[3:47])
        for wrong in (np.empty((43, 4), np.uint16), np.empty((44, 4), np.int16), np.empty((44, 8), np.uint16)[:, ::2]):
            with pytest.raises(PipelineError, match="C-contiguous"):
                array.read(3, 47, wrong)


def test_writing_a_committed_shard_again_changes_nothing(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    with draft_at(tmp_path / "a") as draft:
        array = draft.array("x", shape=(6, 2), dtype="float32", shard_rows=3)
        assert array.write_shard(0, x[:3], {"n": 1})
        assert not array.write_shard(0, x[:3] + 1, {"n": 2})
        np.testing.assert_array_equal(array.read(0, 3), x[:3])
        assert array.commit(0)["info"] == {"n": 1}
        assert array.is_committed(0) and not array.is_committed(1)


def test_misuse_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with draft_at(tmp_path / "a") as draft:
        array = draft.array("x", shape=(6, 2), dtype="float32", shard_rows=4)
        bad = [(0, np.zeros((3, 2), np.float32)), (1, np.zeros((4, 2), np.float32)), (0, np.zeros((4, 2), np.float64))]
        for i, x in bad:
            with pytest.raises(PipelineError, match="needs"):
                array.write_shard(i, x)
        with pytest.raises(PipelineError, match="does not exist"):
            array.write_shard(2, np.zeros((4, 2), np.float32))
        with pytest.raises(PipelineError, match="outside"):
            array.read(0, 7)
        assert not (tmp_path / "a" / "commits").exists()
        same = draft.array("x", shape=(6, 2), dtype="float32", shard_rows=4)
        assert same.shape == (6, 2) and draft.array("x").shard_rows == 4
        for change in ({"shape": (7, 2)}, {"dtype": "float16"}, {"shard_rows": 2}, {"chunk_rows": 2}):
            with pytest.raises(PipelineError, match="asked for"):
                draft.array("x", **{"shape": (6, 2), "dtype": "float32", "shard_rows": 4, **change})
        with pytest.raises(PipelineError, match="no such array"):
            draft.array("y")
        with pytest.raises(PipelineError, match="unknown"):
            draft.array("y", shape=(6,), dtype="float12", shard_rows=4)
        with pytest.raises(PipelineError, match="does not divide"):
            draft.array("y", shape=(6,), dtype="float32", shard_rows=4, chunk_rows=3)
        for name in ("../x", "a/b", "commits", "artefact.json", ".hidden", "", "/etc"):
            with pytest.raises(PipelineError):
                draft.array(name, shape=(6,), dtype="float32", shard_rows=4)


def test_inner_chunks_stay_within_4096_rows_and_16_mib() -> None:
    assert default_chunk_rows(65_536, 256) == 4096
    assert default_chunk_rows(100, 256) == 100
    assert default_chunk_rows(10_000, 2) == 2500
    assert default_chunk_rows(64, 4 << 20) == 4
    assert default_chunk_rows(3, 64 << 20) == 1
    with pytest.raises(PipelineError, match="multiple of 64"):
        default_chunk_rows(65_537, 2)


def test_the_ground_floor_imports_no_torch() -> None:
    code = (
        "import sys, sae_pipeline.store; print(sorted({'torch', 'transformers', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
