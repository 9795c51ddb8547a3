"""Other implementations of Zarr, tensorstore (C++) and zarrs (Rust), read bit for bit what we publish, and we theirs.

Each works in a process of its own: they start threads, and other tests fork.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_store_arrays import draft_at

from sae_pipeline.store import ShardedArray, direct
from sae_pipeline.store.array_format import CODECS, create_array, read_seal
from sae_pipeline.store.direct import Packing
from sae_pipeline.store.storage import LOCAL

TENSORSTORE = """
import tensorstore as ts
def rows(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    return ts.open(spec, open=True).result().read().result()
def write(path, x):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    ts.open(spec, open=True).result().write(x).result()
"""
ZARRS = """
import zarr, zarrs
zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.validate_checksums": True})
def rows(path):
    return zarr.open_array(path, mode="r")[...]
def write(path, x):
    zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})[...] = x
"""
REST = """
import hashlib, json, sys
found = {}
for path in sys.argv[1:]:
    x = rows(path)
    found[path] = [str(x.dtype), list(x.shape), hashlib.sha256(x.tobytes()).hexdigest()]
print(json.dumps(found))
"""


WRITE = """
import sys
import numpy as np
write(sys.argv[1], np.load(sys.argv[2]))
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def published(path: Path) -> dict[str, np.ndarray]:
    """An array of every kind, whole shards of zeros and a short last one among them."""
    random = np.random.default_rng(5)
    values_xd = random.standard_normal((90, 6)).astype(np.float32)
    values_xd[:36] = 0
    arrays = {
        "float16": values_xd.astype(np.float16),
        "bfloat16": torch.from_numpy(values_xd).bfloat16().view(torch.uint16).numpy(),
        "float32": values_xd,
        "int64": random.integers(-(2**60), 2**60, 90),
        "bool": values_xd[:, :2] > 0,
    }
    with draft_at(path) as draft:
        for codec in CODECS:
            for dtype, x in arrays.items():
                name = f"{dtype}-{codec}"
                create_array(path, name, shape=x.shape, dtype=dtype, shard_rows=36, chunk_rows=12, codec=codec)
                array = draft.array(name)
                for i in range(array.n_shards):
                    array.write_shard(i, x[array.rows(i)])
        artefact = draft.publish({})
    assert artefact.array("bfloat16-none").logical_dtype == "bfloat16"
    return {str(path / f"{dtype}-{codec}"): x for dtype, x in arrays.items() for codec in CODECS}


@pytest.mark.parametrize("reader", [TENSORSTORE, ZARRS], ids=["tensorstore", "zarrs"])
def test_another_implementation_reads_every_array(tmp_path: Path, reader: str) -> None:
    arrays = published(tmp_path / "a")
    found = json.loads(run(reader + REST, *arrays))
    expected = {
        path: [str(x.dtype), list(x.shape), hashlib.sha256(x.tobytes()).hexdigest()] for path, x in arrays.items()
    }
    assert found == expected
    assert {kind for kind, _, _ in expected.values()} >= {"uint16", "bool"}


@pytest.mark.parametrize("writer", [TENSORSTORE, ZARRS], ids=["tensorstore", "zarrs"])
def test_what_another_implementation_writes_is_read_directly(tmp_path: Path, writer: str) -> None:
    x = np.random.default_rng(6).standard_normal((300, 7)).astype(np.float16)
    create_array(tmp_path, "x", shape=x.shape, dtype="float16", shard_rows=128, chunk_rows=8)
    np.save(tmp_path / "x.npy", x)
    run(writer + WRITE, str(tmp_path / "x"), str(tmp_path / "x.npy"))
    array = ShardedArray(tmp_path, "x", before_write=lambda: None)
    packing = Packing.of(array._zarr)
    assert packing is not None
    for i in range(array.n_shards):
        rows = array.rows(i)
        out = np.empty((rows.stop - rows.start - 3, 7), np.float16)
        with LOCAL.ranges(array.shard_path(i)) as file:
            seal = read_seal(file, array.shard_path(i), packing.n_chunks)
            direct.unpack(file, array.shard_path(i), seal, packing, 3, out)
        np.testing.assert_array_equal(out, x[rows][3:])
