"""What a codec saves and costs on real activations: the shipped model's, on the standard library's text.

`python codecs.py ROWS REPETITIONS`, run by benchmarks/store.py; prints JSON. One core; warm reads; writes are synced.
Speeds are per second of the clock, and per second of processor time, which no disk and no neighbour changes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import Crc32cCodec

from sae_pipeline.store import Artefact, Draft
from sae_pipeline.store.array_format import CODECS, create_array
from sae_pipeline.study import Site, SubjectConfig
from sae_pipeline.subjects import load_subject, load_tokenizer

CONTEXT, BATCH, N_SHARDS = 64, 64, 4


def activations(n_rows: int) -> torch.Tensor:
    """Rows (n_rows, d) in float32 from three quarters of the way through the model."""
    config = SubjectConfig(alias="code", id="embedded/code-medium")
    subject, tokenizer = load_subject(config, root=Path()), load_tokenizer(config, root=Path())
    site = Site("code", subject.card.n_layers * 3 // 4 - 1, "resid_post")
    ids = np.concatenate(tokenizer.encode_batch(texts(n_rows)))[:n_rows]
    batches = torch.from_numpy(ids.astype(np.int64)).reshape(-1, CONTEXT).split(BATCH)
    return torch.cat([subject.run(ids_cl, [site])[site].flatten(0, 1) for ids_cl in batches])


def texts(n_rows: int) -> list[str]:
    """Enough of the standard library for so many tokens: none of them is longer than eight characters on average."""
    found, n_characters = list[str](), 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found.append(path.read_text(encoding="utf-8", errors="replace"))
        n_characters += len(found[-1])
        if n_characters > 8 * n_rows:
            break
    return found


class Ours:
    """Committed shards under one of our codecs."""

    def __init__(self, codec: str) -> None:
        self.codec = codec

    def write(self, folder: Path, rows_xd: np.ndarray, dtype: str, shard_rows: int) -> None:
        with Draft.open(folder, stage="activations", key="bench", identity="a" * 64, lineage={}) as draft:
            form: dict[str, Any] = {"shape": rows_xd.shape, "dtype": dtype, "shard_rows": shard_rows}
            create_array(folder, "acts", **form, codec=self.codec)
            array = draft.array("acts")
            for i in range(array.n_shards):
                array.write_shard(i, rows_xd[array.rows(i)])
            draft.publish({})

    def read(self, folder: Path, out: np.ndarray) -> None:
        Artefact.open(folder).array("acts").read(0, len(out), out)


class Zarr:
    """The same shards through zarr-python's array interface."""

    def __init__(self, *compressors: Any) -> None:
        self.compressors = compressors

    def write(self, folder: Path, rows_xd: np.ndarray, dtype: str, shard_rows: int) -> None:
        array = zarr.create_array(
            folder / "acts", shape=rows_xd.shape, dtype=rows_xd.dtype, shards=(shard_rows, rows_xd.shape[1]),
            chunks=(min(4096, shard_rows), rows_xd.shape[1]), filters=None, compressors=list(self.compressors),
            fill_value=0,
        )  # fmt: skip
        for start in range(0, len(rows_xd), shard_rows):
            array[start : start + shard_rows] = rows_xd[start : start + shard_rows]
        for path in (folder / "acts" / "c").rglob("0"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

    def read(self, folder: Path, out: np.ndarray) -> None:
        array = zarr.open_array(folder / "acts", mode="r")
        for start in range(0, len(out), len(out) // N_SHARDS):
            out[start : start + len(out) // N_SHARDS] = array[start : start + len(out) // N_SHARDS]


WAYS: dict[str, Ours | Zarr] = {
    "zarr-python, no checksum": Zarr(),
    "zarr-python, crc32c": Zarr(Crc32cCodec()),
    **{f"ours, {name} + crc32c".replace("none + ", ""): Ours(name) for name in CODECS},
}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(root: Path, x_xd: torch.Tensor, repetitions: int) -> list[dict[str, Any]]:
    """A record for every way and type."""
    stored = {"float16": x_xd.half().numpy(), "bfloat16": x_xd.bfloat16().view(torch.uint16).numpy()}
    seconds = defaultdict[tuple[str, str, str], list[tuple[float, float]]](list)
    n_bytes = dict[tuple[str, str], int]()
    for repetition in range(repetitions):
        for dtype, name in random.sample([(dtype, name) for dtype in stored for name in WAYS], 2 * len(WAYS)):
            rows_xd, way, folder = stored[dtype], WAYS[name], root / f"{dtype}-{name}-{repetition}"
            out, shard_rows = np.empty_like(rows_xd), len(rows_xd) // N_SHARDS
            written = timed(lambda: way.write(folder, rows_xd, dtype, shard_rows))  # noqa: B023
            seconds[dtype, name, "write"].append(written)
            seconds[dtype, name, "read"].append(timed(lambda: way.read(folder, out)))  # noqa: B023
            assert np.array_equal(out, rows_xd)
            n_bytes[dtype, name] = sum(path.stat().st_size for path in (folder / "acts").rglob("*") if path.is_file())
            shutil.rmtree(folder)
    return [
        {"dtype": dtype, "codec": name, "compression": stored[dtype].nbytes / size}
        | {what: speeds(stored[dtype].nbytes, seconds[dtype, name, what]) for what in ("write", "read")}
        for (dtype, name), size in sorted(n_bytes.items())
    ]


def speeds(n_bytes: int, seconds: list[tuple[float, float]]) -> dict[str, float]:
    clock_s, processor_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {"gb_per_s": n_bytes / 1e9 / clock_s, "gb_per_processor_s": n_bytes / 1e9 / processor_s}


def main() -> None:
    n_rows, repetitions = map(int, sys.argv[1:])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    random.seed(0)
    x_xd = activations(n_rows // (CONTEXT * N_SHARDS) * CONTEXT * N_SHARDS)
    with tempfile.TemporaryDirectory() as folder:
        records = measure(Path(folder), x_xd, repetitions)
    print(json.dumps({"rows": len(x_xd), "d": x_xd.shape[1], "ways": records}))


if __name__ == "__main__":
    main()
