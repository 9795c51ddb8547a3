from __future__ import annotations

import gc
import shutil
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import publish_activations, publish_dataset, residual_rows

from sae_pipeline.dataset import Dataset, Normaliser, ReadOrder, measure_mixing
from sae_pipeline.dataset.order import permutation
from sae_pipeline.dataset.prefetch import Prefetch
from sae_pipeline.store import Damaged, PipelineError

D = 6
N = 1000  # ten shards of 96 rows and one of 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("batches")
    activations = publish_activations(path / "a", residual_rows(N, D).half(), 96, "float16")
    return publish_dataset(path / "d", activations, resident_shards=3)


def numbered(path: Path, n: int, shard_rows: int, dtype: str = "float32") -> Dataset:
    """A dataset whose un-normalised rows tell their own number."""
    x = torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 2)
    return publish_dataset(path / "d", publish_activations(path / "a", x, shard_rows, dtype), normaliser="none")


def steps(dataset: Dataset, batch: int, first: int, n: int, prefetch: int) -> list[torch.Tensor]:
    found = list(dataset.batches(batch, first, n, prefetch=prefetch))
    assert [item.step for item in found] == list(range(first, first + n))
    assert all(item.x_bd.shape == (batch, dataset.d) and item.x_bd.dtype == torch.float32 for item in found)
    return [item.x_bd for item in found]


@pytest.mark.parametrize("batch", [1, 64, 333, 1000, 1700])
def test_a_batch_depends_on_its_step_alone(dataset: Dataset, batch: int) -> None:
    n = max(2, 2300 // batch) if batch > 1 else 40
    whole = steps(dataset, batch, 0, n, 0)
    for prefetch, first in ((0, 1), (1, n - 1), (2, 0), (5, n // 2)):
        for a, b in zip(steps(dataset, batch, first, n - first, prefetch), whole[first:], strict=True):
            assert torch.equal(a, b)


def test_batches_are_the_normalised_rows_of_the_order(dataset: Dataset) -> None:
    raw = residual_rows(N, D).half().float()
    rows = torch.from_numpy(dataset.order.rows(7 * 150, 9 * 150))  # across the end of the first epoch
    for i, x_bd in enumerate(steps(dataset, 150, 7, 2, 2)):
        expected = dataset.normaliser.normalise(raw[rows[i * 150 : (i + 1) * 150]])[0]
        torch.testing.assert_close(x_bd, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_row_comes_exactly_once_in_each_epoch(tmp_path: Path, dtype: str) -> None:
    n = 250  # small enough to be exact in bfloat16
    dataset = numbered(tmp_path, n, 32, dtype)
    stream = torch.cat(steps(dataset, 50, 0, 15, 2))[:, 0].long()
    epochs = stream.view(3, n)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(n))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80), st.integers(1, 6), st.integers(0, 50), st.data())
def test_the_order_is_a_permutation_of_each_epoch_and_can_be_entered_anywhere(
    n_rows: int, shard_rows: int, resident: int, seed: int, data: st.DataObject
) -> None:
    order = ReadOrder(n_rows, shard_rows, seed, resident)
    two_epochs = order.rows(0, 2 * n_rows)
    for epoch in two_epochs.reshape(2, n_rows):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n_rows))
    start = data.draw(st.integers(0, 2 * n_rows))
    stop = data.draw(st.integers(start, 2 * n_rows))
    np.testing.assert_array_equal(order.rows(start, stop), two_epochs[start:stop])
    sizes = [len(group.shards) for group in takewhile(lambda group: group.epoch == 0, order.groups(0))]
    assert max(sizes) <= resident and max(sizes) - min(sizes) <= 1 and sum(sizes) == order.n_shards


def test_the_order_never_changes_between_versions() -> None:
    # Written down once: whoever changes these numbers changes every training run.
    assert permutation(10, 1, 2, 3).tolist() == PERMUTATION
    assert ReadOrder(12, 3, seed=7, resident_shards=2).rows(0, 24).tolist() == ROWS


def test_permutations_are_uniform_enough() -> None:
    n, trials = 5, 6000
    counts = np.zeros((n, n))
    for seed in range(trials):
        counts[np.arange(n), permutation(n, seed)] += 1
    expected = trials / n
    assert float(((counts - expected) ** 2 / expected).sum()) < 45  # chi-square, 16 degrees of freedom: p < 2e-4 beyond


def test_seeds_and_epochs_have_unrelated_orders() -> None:
    a, b = (ReadOrder(512, 64, seed, 4).rows(0, 512) for seed in (1, 2))
    assert np.count_nonzero(a == b) < 12


PERMUTATION = [1, 8, 2, 4, 6, 5, 0, 9, 7, 3]
ROWS = [6, 8, 9, 10, 7, 11, 4, 1, 5, 3, 0, 2, 4, 11, 9, 10, 3, 5, 0, 1, 7, 2, 8, 6]


def same_pairs(labels: np.ndarray) -> float:
    return float((labels[:, None] == labels[None, :]).sum() - len(labels))


def test_mixing_is_the_ratio_of_pairs_by_brute_force() -> None:
    offsets = np.array([0, 3, 10, 16, 30, 40, 47, 60])
    documents = np.array([0, 1, 0, 2, 1, 2, 0])
    order = ReadOrder(60, 10, seed=1, resident_shards=2)
    mixing = measure_mixing(order, offsets, documents, batch=12, n_batches=5)
    context_of_row = np.repeat(np.arange(7), np.diff(offsets))
    for labels, found in (
        (context_of_row, mixing.same_context_ratio),
        (documents[context_of_row], mixing.same_document_ratio),
    ):
        met = np.mean([same_pairs(labels[order.rows(12 * t, 12 * t + 12)]) for t in range(5)])
        assert found == pytest.approx(met / (12 * 11 * same_pairs(labels) / (60 * 59)), rel=1e-12)


def test_mixing_tells_a_good_order_from_a_bad_one() -> None:
    offsets, documents = np.arange(0, 64_001, 64), np.arange(1000) // 10
    good, poor = (measure_mixing(ReadOrder(64_000, 4000, 1, m), offsets, documents, batch=1000) for m in (16, 1))
    assert good.same_context_ratio == pytest.approx(1, abs=0.1)
    assert good.same_document_ratio == pytest.approx(1, abs=0.1)
    assert poor.same_context_ratio == pytest.approx(ReadOrder(64_000, 4000, 1, 1).n_groups, rel=0.1)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("how", ["exhausted", "closed", "dropped", "broken off"])
def test_no_thread_outlives_its_batches(dataset: Dataset, how: str) -> None:
    batches = dataset.batches(10, 0, 50 if how == "exhausted" else 10**6, prefetch=3)
    if how == "exhausted":
        assert sum(1 for _ in batches) == 50
    elif how == "broken off":
        for batch in batches:
            if batch.step == 3:
                break
        assert prefetch_threads()
        batches.close()
    else:
        next(batches)
        assert len(prefetch_threads()) == 2
        if how == "closed":
            batches.close()
    del batches
    gc.collect()
    assert prefetch_threads() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_damage_met_while_reading_reaches_the_consumer(tmp_path: Path, prefetch: int) -> None:
    dataset = numbered(tmp_path, 640, 64)
    last_group = next(group for group in dataset.order.groups(639))
    victim = tmp_path / "a" / "acts" / "c" / str(last_group.shards[-1]) / "0"
    victim.write_bytes(victim.read_bytes()[:-9])
    seen = 0
    with pytest.raises(Damaged, match="cut short"):
        for _ in dataset.batches(16, 0, 40, prefetch=prefetch):
            seen += 1
    assert 0 < seen == last_group.start // 16
    assert prefetch_threads() == []


def test_prefetch_makes_no_more_than_depth_ahead() -> None:
    made, gate = [], threading.Semaphore(0)

    def source() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            gate.release()
            yield i

    with Prefetch(source, 3) as items:
        for expected in range(10):
            assert next(items) == expected
        for _ in range(13):
            assert gate.acquire(timeout=10)
    assert prefetch_threads() == [] and made == list(range(13))


def test_prefetch_hands_over_errors_after_the_items_before_them() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise RuntimeError("disk on fire")

    items = Prefetch(source, 4)
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(RuntimeError, match="disk on fire"):
            next(items)


def test_an_error_before_the_first_item_is_handed_over_too() -> None:
    def broken() -> Iterator[int]:
        raise RuntimeError("no such disk")

    with pytest.raises(RuntimeError, match="no such disk"):
        next(Prefetch(broken, 1))
    assert prefetch_threads() == []


def test_memory_stays_bounded_over_many_groups(tmp_path: Path) -> None:
    shard_bytes = 512 * 64 * 4
    activations = publish_activations(tmp_path / "a", residual_rows(512 * 20, 64), 512)
    dataset = publish_dataset(tmp_path / "d", activations, resident_shards=2, sample_rows=16)
    for _ in dataset.batches(128, 0, 8, prefetch=2):
        pass
    tracemalloc.start()
    try:
        for _ in dataset.batches(128, 0, 160, prefetch=2):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2 * shard_bytes < peak < 8 * shard_bytes  # two groups of two shards, and batches under way, of 20


def test_a_dataset_opens_only_over_its_own_activations(dataset: Dataset, tmp_path: Path) -> None:
    other = publish_activations(tmp_path / "a", residual_rows(N, D).half(), 96, "float16")
    other.identity = "b" * 64
    with pytest.raises(PipelineError, match="built from other activations"):
        Dataset.open(dataset.artefact, other)
    for arguments in ((0, 0, 1), (8, -1, 1)):
        with pytest.raises(PipelineError, match="must be positive"):
            dataset.batches(*arguments)


def test_shards_of_one_group_are_mixed(tmp_path: Path) -> None:
    dataset = numbered(tmp_path, 256, 32)
    assert dataset.normaliser == Normaliser("none", 2)
    first = steps(dataset, 128, 0, 1, 0)[0][:, 0].long() // 32
    assert len(set(first.tolist())) == 4  # four resident shards in the first half of an epoch
    assert len(set(first[:32].tolist())) == 4
    shutil.rmtree(tmp_path)
