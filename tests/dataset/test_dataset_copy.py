"""`dataset.copy`: the same batches from a normalised copy, written shard by shard and resumed after a kill."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from rows import contexts_of, publish_activations, publish_dataset, residual_rows

from sae_pipeline.dataset import Dataset, build_dataset
from sae_pipeline.dataset.copy import ROWS, write_copy
from sae_pipeline.store import Artefact, Draft, PipelineError, ShardedArray

D, N, SHARD_ROWS = 24, 3000, 256


@pytest.mark.parametrize("normaliser", ["paper", "layer_norm", "rms", "none"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_view_and_copy_give_the_same_bits(tmp_path: Path, normaliser: str, dtype: str) -> None:
    activations = publish_activations(tmp_path / "a", residual_rows(N, D).to(getattr(torch, dtype)), SHARD_ROWS, dtype)
    view = publish_dataset(tmp_path / "v", activations, normaliser=normaliser)
    copy = publish_dataset(tmp_path / "c", activations, normaliser=normaliser, copy=True)
    assert copy.normaliser == view.normaliser and copy.statistics.count == N
    threads = torch.get_num_threads()
    try:
        for batch, first, n, prefetch, n_threads in ((1, 37, 40, 0, 1), (333, 0, 20, 2, 2), (2999, 1, 3, 1, 2)):
            torch.set_num_threads(1)
            expected = [item.x_bd for item in view.batches(batch, first, n, prefetch=0)]
            torch.set_num_threads(n_threads)
            for dataset in (view, copy):
                found = [item.x_bd for item in dataset.batches(batch, first, n, prefetch=prefetch)]
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(threads)
    mean = torch.cat([item.x_bd for item in copy.batches(N, 0, 1)]).double().mean(0)
    torch.testing.assert_close(mean, torch.from_numpy(copy.statistics.mean), rtol=1e-5, atol=1e-6)


def test_a_copy_is_resumed_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = publish_activations(tmp_path / "a", residual_rows(N, D).half(), SHARD_ROWS, "float16")
    whole = publish_dataset(tmp_path / "whole", activations, copy=True)
    write, written = ShardedArray.write_shard, list[int]()

    def dies_at_the_fifth(array: ShardedArray, i: int, *rest: object) -> bool:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(i)
        return write(array, i, *rest)  # type: ignore[arg-type]

    options = {"normaliser": "paper", "seed": 5, **contexts_of(N, 8, 9), "copy": True}
    monkeypatch.setattr(ShardedArray, "write_shard", dies_at_the_fifth)
    with _draft(tmp_path / "d") as draft, pytest.raises(KeyboardInterrupt):
        build_dataset(draft, activations, **options)
    written.clear()
    monkeypatch.setattr(ShardedArray, "write_shard", lambda *a: written.append(a[1]) or write(*a))
    with _draft(tmp_path / "d") as draft:
        build_dataset(draft, activations, **options)
        resumed = Dataset.open(draft.publish({}), activations)
    assert written == list(range(5, whole.order.n_shards))
    for i in range(whole.order.n_shards):
        a, b = (item.artefact.array(ROWS).commit(i)["chunk_crc32c"] for item in (whole, resumed))
        assert a == b


def _draft(path: Path) -> Draft:
    return Draft.open(path, stage="dataset", key="code.1.resid_post", identity="d" * 64, lineage={})


def _peak_bytes(work: object) -> int:
    assert callable(work)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _activations(path: Path, n_shards: int) -> Artefact:
    return publish_activations(path, residual_rows(2048 * n_shards, 64).half(), 2048, "float16")


def test_memory_of_reading_and_copying_is_flat_over_ten_times_the_rows(tmp_path: Path) -> None:
    shard_bytes = 2048 * 64 * 2
    # By name: two groups of two shards, of half and of full precision; a shard as stored and twice in float32.
    most = {"batches": 4 * shard_bytes, "batches of the copy": 8 * shard_bytes, "copying": 5 * shard_bytes}
    peaks: dict[str, list[int]] = {name: [] for name in most}
    for n_shards in (6, 6, 60, 60):  # twice: whoever comes first may pay for a table of the interpreter that grows
        path = tmp_path / f"{n_shards}-{len(peaks['copying'])}"
        activations = _activations(path / "a", n_shards)
        view = publish_dataset(path / "v", activations, resident_shards=2, sample_rows=16)
        copy = publish_dataset(path / "c", activations, resident_shards=2, sample_rows=16, copy=True)
        acts = activations.array("acts")
        for name, dataset in (("batches", view), ("batches of the copy", copy)):
            steps = acts.n_rows // 512
            peaks[name].append(_peak_bytes(lambda d=dataset, n=steps: [None for _ in d.batches(512, 0, n)]))
        with _draft(path / "again") as draft:
            peaks["copying"].append(_peak_bytes(lambda d=draft, a=acts, n=view.normaliser: write_copy(d, a, n)))
    for name, found in peaks.items():
        small, large = min(found[:2]), min(found[2:])
        assert shard_bytes < small < most[name] + shard_bytes, name
        assert shard_bytes < large < most[name] + shard_bytes, name


def test_a_published_copy_lists_its_rows(tmp_path: Path) -> None:
    activations = publish_activations(tmp_path / "a", residual_rows(600, D).half(), SHARD_ROWS, "float16")
    copy, view = (publish_dataset(tmp_path / name, activations, copy=name == "c") for name in ("c", "v"))
    assert copy.artefact.arrays == [ROWS] and view.artefact.arrays == []
    array = copy.artefact.array(ROWS)
    assert (array.shape, array.logical_dtype, array.shard_rows) == ((600, D), "float32", SHARD_ROWS)
    first = array.shard_path(0)
    first.write_bytes(first.read_bytes()[:-5])
    with pytest.raises(PipelineError, match=r"cut short|bytes"):
        next(copy.batches(600, 0, 1))
