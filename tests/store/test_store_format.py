"""docs/format.md is enough to read an artefact: this reader knows nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from small_artefact import INDEX_X, ROWS_XD

from sae_pipeline.store import Artefact


def unseal(path: Path) -> dict[str, Any]:
    first, rest = path.read_bytes().split(b"\n", 1)
    assert first == b'{"checksum": "' + hashlib.sha256(rest).hexdigest().encode() + b'",'
    return json.loads(path.read_bytes())


def crc(data: bytes) -> str:
    return google_crc32c.value(data).to_bytes(4, "little").hex()


def read_array(root: Path, name: str) -> np.ndarray:
    zarr_json = json.loads((root / name / "zarr.json").read_bytes())
    shape = zarr_json["shape"]
    shard_rows = zarr_json["chunk_grid"]["configuration"]["chunk_shape"][0]
    sharding = zarr_json["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "crc32c"]
    chunk_shape = sharding["chunk_shape"]
    n_chunks = shard_rows // chunk_shape[0]
    shards = []
    for i, listed in enumerate(unseal(root / "artefact.json")["arrays"][name]):
        record_path = root / "commits" / name / f"{i}.json"
        assert hashlib.sha256(record_path.read_bytes()).hexdigest() == listed["commit_sha256"]
        record = unseal(record_path)
        data = (root / name / "c").joinpath(str(i), *["0"] * (len(shape) - 1)).read_bytes()
        index = data[-16 * n_chunks - 4 : -4]
        assert len(data) == record["bytes"] == listed["bytes"]
        assert crc(index) == data[-4:].hex() == record["index_crc32c"] == listed["index_crc32c"]
        rows = []
        for (offset, length), expected in zip(
            np.frombuffer(index, "<u8").reshape(-1, 2).tolist(), record["chunk_crc32c"], strict=False
        ):
            chunk, trailer = data[offset : offset + length - 4], data[offset + length - 4 : offset + length]
            assert crc(chunk) == trailer.hex() == expected
            rows.append(np.frombuffer(chunk, zarr_json["data_type"]).reshape(chunk_shape))
        start, stop = record["rows"]
        shards.append(np.concatenate(rows)[: stop - start])
    return np.concatenate(shards)


def test_a_reader_written_from_the_description_reads_what_we_write(publish: Callable[[], Artefact]) -> None:
    root = publish().path
    document = unseal(root / "artefact.json")
    assert (document["format"], document["stage"], document["summary"]["rows"]) == (1, "activations", 90)
    hidden_or_listed_elsewhere = {"artefact.json", ".lock"}
    files = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if path.is_file() and path.name not in hidden_or_listed_elsewhere
    }
    files = {name: path for name, path in files.items() if "/c/" not in name and not name.startswith("commits/")}
    assert document["files"] == {
        name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in files.items()
    }
    np.testing.assert_array_equal(read_array(root, "acts"), ROWS_XD)
    np.testing.assert_array_equal(read_array(root, "index"), INDEX_X)
