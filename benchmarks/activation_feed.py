"""How much of the disk's speed the store keeps, and how fast batches come: medians of interleaved repetitions.

Ratios within one run are what counts; absolute figures stand beside them, per second of the clock and per second of
processor time (the latter moves less when other work runs beside). One core, d = 128, fp16.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sae_pipeline.activations import Moments
from sae_pipeline.dataset import Dataset, build_dataset
from sae_pipeline.store import Artefact, Draft, ShardedArray

D, SHARD_ROWS, N_SHARDS, BATCH, REPETITIONS = 128, 65_536, 8, 4096, 5
ROWS = SHARD_ROWS * N_SHARDS
GIGABYTES = ROWS * D * 2 / 1e9


def publish(path: Path, rows_xd: np.ndarray, moments: dict[str, object]) -> Artefact:
    with Draft.open(path, stage="activations", key="bench", identity="a" * 64, lineage={}) as draft:
        acts = draft.array("acts", shape=(ROWS, D), dtype="float16", shard_rows=SHARD_ROWS)
        for i in range(N_SHARDS):
            acts.write_shard(i, rows_xd, {"moments": moments})
        return draft.publish({})


def raw_write(path: Path, rows_xd: np.ndarray) -> None:
    for i in range(N_SHARDS):
        with (path / f"raw{i}").open("wb") as file:
            file.write(rows_xd.data)
            os.fsync(file.fileno())


def raw_read(path: Path, buffer: np.ndarray) -> None:
    for i in range(N_SHARDS):
        with (path / f"raw{i}").open("rb") as file:
            file.readinto(buffer.data.cast("B"))


def store_read(acts: ShardedArray, buffer: np.ndarray) -> None:
    for i in range(acts.n_shards):
        acts.read(acts.rows(i).start, acts.rows(i).stop, out=buffer)


def open_dataset(path: Path, activations: Artefact) -> Dataset:
    offsets = np.arange(0, ROWS + 1, 64)
    with Draft.open(path, stage="dataset", key="bench", identity="b" * 64, lineage={}) as draft:
        documents = np.arange(len(offsets) - 1)
        build_dataset(
            draft, activations, normaliser="paper", seed=0, row_offsets=offsets, document_of_context=documents
        )
        return Dataset.open(draft.publish({}), activations)


def epoch(dataset: Dataset, prefetch: int) -> None:
    for _ in dataset.batches(BATCH, 0, ROWS // BATCH, prefetch=prefetch):
        pass


def timed(work: Callable[[], object]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(root: Path) -> dict[str, tuple[float, float]]:
    """Median seconds (clock, processor) of each kind of work over the same bytes."""
    rows_xd = np.random.default_rng(0).standard_normal((SHARD_ROWS, D), dtype=np.float32).astype(np.float16)
    moments = Moments.of(torch.from_numpy(rows_xd)).to_json()
    buffer, seconds = np.empty_like(rows_xd), defaultdict[str, list[tuple[float, float]]](list)
    activations = publish(root / "acts", rows_xd, moments)
    dataset, acts = open_dataset(root / "dataset", activations), activations.array("acts")
    for i in range(REPETITIONS):
        seconds["raw write + fsync"].append(timed(lambda: raw_write(root, rows_xd)))
        seconds["committed write"].append(timed(lambda: publish(root / f"acts{i}", rows_xd, moments)))  # noqa: B023
        seconds["raw read"].append(timed(lambda: raw_read(root, buffer)))
        seconds["verified read"].append(timed(lambda: store_read(acts, buffer)))
        seconds["batches"].append(timed(lambda: epoch(dataset, 0)))
        seconds["batches, prefetched"].append(timed(lambda: epoch(dataset, 2)))
    return {
        name: (statistics.median(clock for clock, _ in pairs), statistics.median(cpu for _, cpu in pairs))
        for name, pairs in seconds.items()
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder))
    ratios = {
        "committed write / raw write + fsync": seconds["raw write + fsync"][0] / seconds["committed write"][0],
        "verified read / raw read (warm)": seconds["raw read"][0] / seconds["verified read"][0],
        "batches / verified read": seconds["verified read"][0] / seconds["batches"][0],
    }
    rates = {
        name: {"GB/s": GIGABYTES / clock, "rows/s": ROWS / clock, "rows per processor second": ROWS / cpu}
        for name, (clock, cpu) in seconds.items()
    }
    for name, rate in rates.items():
        per_second, per_cpu = rate["rows/s"] / 1e6, rate["rows per processor second"] / 1e6
        print(f"{name:36s} {rate['GB/s']:6.2f} GB/s {per_second:6.2f} M rows/s {per_cpu:6.2f} M rows/cpu-s")
    for name, ratio in ratios.items():
        print(f"{name:36s} {ratio:6.2f}")
    Path(__file__).with_suffix(".json").write_text(json.dumps({"ratios": ratios, "rates": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()
