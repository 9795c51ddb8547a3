from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_pipeline.tokens.near_duplicates import jaccard, lexical_tokens, near_duplicate_clusters, shingles
from sae_pipeline.tokens.rolling import run_hashes


def brute_shingles(tokens: Sequence[int], size: int = 13) -> set[tuple[int, ...]]:
    size = min(size, len(tokens))
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)} if size else set()


def brute_clusters(documents: Sequence[np.ndarray], threshold: float) -> list[int]:
    sets = [brute_shingles(d.tolist()) for d in documents]
    label = list(range(len(documents)))
    for i in range(len(documents)):
        for j in range(i):
            union = len(sets[i] | sets[j])
            if union and len(sets[i] & sets[j]) / union > threshold:
                low, high = sorted((label[i], label[j]))
                label = [low if x == high else x for x in label]
    return label


def edited(tokens: np.ndarray, n_edits: int, generator: np.random.Generator) -> np.ndarray:
    tokens = tokens.copy()
    tokens[generator.integers(tokens.size, size=n_edits)] = generator.integers(10_000, 20_000, size=n_edits)
    return tokens


@pytest.fixture(scope="module")
def families() -> list[np.ndarray]:
    """Originals, each with copies edited from not at all to beyond recognition, so that Jaccards cover 0 to 1."""
    generator = np.random.default_rng(0)
    documents = []
    for _ in range(12):
        original = generator.integers(3000, size=int(generator.integers(150, 900)))
        documents += [edited(original, n, generator) for n in (0, 0, 1, original.size // 60, original.size // 20)]
    documents += [np.arange(5), np.arange(5), np.arange(6), np.zeros(0, np.int64)]
    return [documents[i] for i in generator.permutation(len(documents))]


def test_clusters_equal_those_of_all_pairs_by_brute_force(families: list[np.ndarray]) -> None:
    expected = brute_clusters(families, 0.5)
    assert len(set(expected)) < len(families)
    assert near_duplicate_clusters(families).tolist() == expected


def test_a_higher_threshold_joins_less(families: list[np.ndarray]) -> None:
    expected = brute_clusters(families, 0.9)
    found = near_duplicate_clusters(families, threshold=0.9).tolist()
    assert found == expected
    assert len(set(found)) > len(set(near_duplicate_clusters(families).tolist()))


def test_a_pair_far_below_the_threshold_is_never_joined() -> None:
    half = np.arange(400)
    pair = [np.concatenate([half, half + 1000]), np.concatenate([half, half + 2000])]
    assert 0.3 < jaccard(shingles(pair[0]), shingles(pair[1])) < 0.5
    assert near_duplicate_clusters(pair).tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60))
def test_jaccard_of_hashes_is_jaccard_of_runs(a: list[int], b: list[int]) -> None:
    x, y = brute_shingles(a), brute_shingles(b)
    # Documents below 13 tokens are one run each, of their own length.
    expected = len(x & y) / len(x | y) if x and y else 0.0
    assert jaccard(shingles(np.asarray(a, int)), shingles(np.asarray(b, int))) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=80), st.integers(1, 20))
def test_run_hashes_are_equal_exactly_where_runs_are(tokens: list[int], length: int) -> None:
    hashes = run_hashes(np.asarray(tokens), length).tolist()
    runs = [tuple(tokens[i : i + length]) for i in range(max(0, len(tokens) - length + 1))]
    assert len(hashes) == len(runs)
    assert len(set(zip(hashes, runs, strict=True))) == len(set(hashes)) == len(set(runs))


def test_lexical_tokens_see_words_and_marks() -> None:
    tokens = lexical_tokens("f(x) = f (x)\n\n# café")
    assert tokens.size == 11
    assert tokens[:4].tolist() == tokens[5:9].tolist()
