"""Clusters of near-duplicate documents: MinHash proposes pairs, exact Jaccard over 13-token shingles decides them.

MinHash after Broder (1997); banding after Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, §3.4. With
bands of three hashes a pair at Jaccard 0.5 is proposed with probability 1 - (1 - 0.5^3)^42 = 0.996, one at 0.6 with
0.99995.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.store import Progress, silent
from sae_pipeline.tokens.rolling import U64, run_hashes

SHINGLE_TOKENS = 13
N_HASHES = 126
_BAND = 3
_HASH_SEED = 13
_SLICE = 1 << 11  # shingles hashed at a time, so that the products stay in cache
_WORD = re.compile(r"\w+|[^\w\s]")


def lexical_tokens(text: str) -> NDArray[np.int64]:
    """Words and punctuation marks of `text` as integers, the same in every process: where no tokenizer exists yet."""
    known: dict[str, int] = {}
    ids = []
    for word in _WORD.findall(text):
        if (number := known.get(word)) is None:
            number = known[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        ids.append(number)
    return np.asarray(ids, dtype=np.int64)


def shingles(tokens: NDArray[np.integer], size: int = SHINGLE_TOKENS) -> U64:
    """Sorted distinct 64-bit hashes of the runs of `size` tokens; a shorter document is one run, an empty one none."""
    if tokens.size == 0:
        return np.zeros(0, np.uint64)
    return np.unique(run_hashes(tokens, min(size, tokens.size)))


def jaccard(a: U64, b: U64) -> float:
    """|a ∩ b| / |a ∪ b| of two sorted distinct arrays; 0 when either is empty."""
    if not a.size or not b.size:
        return 0.0
    shared = np.intersect1d(a, b, assume_unique=True).size
    return shared / (a.size + b.size - shared)


def _signature(shingle_hashes: U64, odd: U64, shift: U64) -> NDArray[np.uint32]:
    lowest = np.full(N_HASHES, np.iinfo(np.uint64).max)
    for start in range(0, shingle_hashes.size, _SLICE):
        part = shingle_hashes[start : start + _SLICE]
        lowest = np.minimum(lowest, (part[None, :] * odd[:, None] + shift[:, None]).min(axis=1))
    return (lowest >> np.uint64(32)).astype(np.uint32)


class _Union:
    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self.root(i), self.root(j)))
        self.parent[high] = low


def _join_bands(
    union: _Union,
    documents: Sequence[NDArray[np.integer]],
    distinct: NDArray[np.int64],
    signatures: NDArray[np.uint32],
    threshold: float,
) -> None:
    """Join documents that share a band of their signature and pass the exact check."""
    for start in range(0, N_HASHES, _BAND):
        band = np.ascontiguousarray(signatures[:, start : start + _BAND])
        _, label = np.unique(band.view(f"V{4 * _BAND}").ravel(), return_inverse=True)
        order = np.argsort(label, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
            if group.size > 1:
                _join_group(union, documents, [int(i) for i in distinct[group]], threshold)


def _join_group(union: _Union, documents: Sequence[NDArray[np.integer]], members: list[int], threshold: float) -> None:
    sets: dict[int, U64] = {}
    for at, i in enumerate(members):
        for j in members[at + 1 :]:
            if union.root(i) == union.root(j):
                continue
            for member in (i, j):
                if member not in sets:
                    sets[member] = shingles(np.asarray(documents[member]))
            if jaccard(sets[i], sets[j]) > threshold:
                union.join(i, j)


def near_duplicate_clusters(
    documents: Sequence[NDArray[np.integer]], *, threshold: float = 0.5, progress: Progress = silent
) -> NDArray[np.int64]:
    """Label every document with the lowest index of its cluster.

    `documents`: token ids, one 1-d array each; the sequence may read lazily (an entry is fetched again for the check).
    Two documents are joined when equal token for token or when their shingle sets have Jaccard > `threshold`.
    """
    union = _Union(len(documents))
    first_with: dict[bytes, int] = {}
    generator = np.random.default_rng(_HASH_SEED)
    odd = generator.integers(0, 1 << 64, N_HASHES, dtype=np.uint64) | np.uint64(1)
    shift = generator.integers(0, 1 << 64, N_HASHES, dtype=np.uint64)
    signatures: list[NDArray[np.uint32]] = []
    distinct: list[int] = []
    for i in range(len(documents)):
        tokens = np.ascontiguousarray(documents[i], dtype=np.int64)
        original = first_with.setdefault(hashlib.sha256(tokens.tobytes()).digest(), i)
        if original != i:
            union.join(original, i)
        elif tokens.size:
            signatures.append(_signature(shingles(tokens), odd, shift))
            distinct.append(i)
        progress.update(i + 1, len(documents), "documents")
    if distinct:
        _join_bands(union, documents, np.asarray(distinct), np.stack(signatures), threshold)
    return np.asarray([union.root(i) for i in range(len(documents))], dtype=np.int64)
