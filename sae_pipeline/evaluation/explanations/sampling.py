"""Which latents are explained, and from which of their activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.evaluation.codes_cache import CodesCache
from sae_pipeline.evaluation.explanations.corpus import Corpus, IntArray
from sae_pipeline.evaluation.inputs import FloatArray

MIN_EXAMPLES: Final = 4
"""A latent that fires on fewer rows of the build side is not explained."""

STRATA: Final = 8
BLOCK_ROWS: Final = 8192


@dataclass(frozen=True)
class Active:
    """Active (row, latent) pairs of rows `start` to `stop`, the latents by their place among the sampled ones."""

    start: int
    stop: int
    row_p: IntArray
    slot_p: IntArray
    value_p: FloatArray

    def dense(self, slots: int) -> FloatArray:
        """Activations [stop − start, slots]."""
        act_rs = np.zeros((self.stop - self.start, slots))
        act_rs[self.row_p - self.start, self.slot_p] = self.value_p
        return act_rs


@dataclass(frozen=True)
class Example:
    """One activation of a sampled latent: the context up to the token it fires on, and its value there."""

    slot: int
    tokens: tuple[int, ...]
    value: float


def active_pairs(cache: CodesCache, latents_s: IntArray, start: int, stop: int) -> Iterator[Active]:
    """What the latents do on rows `start` to `stop`, block by block."""
    slot_n = np.full(cache.n, -1)
    slot_n[latents_s] = np.arange(len(latents_s))
    for a in range(start, stop, BLOCK_ROWS):
        b = min(a + BLOCK_ROWS, stop)
        codes = cache.codes(a, b)
        row_p = np.repeat(np.arange(a, b), codes.l0_b.numpy())
        active = codes.values > 0
        slot_p, value_p = slot_n[codes.indices[active].numpy()], codes.values[active].double().numpy()
        kept = slot_p >= 0
        yield Active(a, b, row_p[kept], slot_p[kept], value_p[kept])


def counts_of(cache: CodesCache, stop: int) -> IntArray:
    """On how many of the rows before `stop` each latent fires, [n]."""
    counts_n = np.zeros(cache.n, np.int64)
    for start in range(0, stop, BLOCK_ROWS):
        counts_n += np.bincount(cache.codes(start, min(start + BLOCK_ROWS, stop)).fired.numpy(), minlength=cache.n)
    return counts_n


def choose_latents(counts_n: IntArray, wanted: int, seed: int) -> IntArray:
    """A sample of the latents that have enough examples, spread evenly over strata of their density; ascending.

    Each latent has a random priority that n and the seed alone decide, and the strata take their first: two
    autoencoders of one n share the latents that they can share. Equal shares of equal strata: the plain mean over the
    sample estimates that over all latents with enough examples.
    """
    frame = np.flatnonzero(counts_n >= MIN_EXAMPLES)
    if len(frame) <= wanted:
        return frame
    priority_n = np.random.default_rng(seed).random(len(counts_n))
    strata = np.array_split(frame[np.argsort(counts_n[frame], kind="stable")], min(STRATA, wanted))
    quotas = [len(part) for part in np.array_split(np.arange(wanted), len(strata))]
    chosen = [stratum[np.argsort(priority_n[stratum])[:quota]] for stratum, quota in zip(strata, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def choose_examples(cache: CodesCache, corpus: Corpus, latents_s: IntArray, wanted: int, seed: int) -> list[Example]:
    """Up to `wanted` activations of each latent on the build side: the strongest half, and random ones of the rest."""
    rng = np.random.default_rng(seed)
    strongest = others = _Ranked.none()
    for active in active_pairs(cache, latents_s, 0, corpus.cut):
        # one number a row, drawn in the order of the rows: the blocks change nothing, and autoencoders share it
        priority_r = rng.random(active.stop - active.start)
        strongest = strongest.joined(active, -active.value_p).first(wanted - wanted // 2)
        others = others.joined(active, priority_r[active.row_p - active.start]).first(wanted)
    rest = others.without(strongest, corpus.n_rows).first(wanted // 2)
    return [
        Example(slot, corpus.tokens(row), value)
        for best in (strongest, rest)
        for slot, row, value in zip(best.slot_p.tolist(), best.row_p.tolist(), best.value_p.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class _Ranked:
    """Active pairs in rising order of latent, key, row."""

    slot_p: IntArray
    row_p: IntArray
    value_p: FloatArray
    key_p: FloatArray

    @classmethod
    def none(cls) -> _Ranked:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))

    def joined(self, active: Active, key_p: FloatArray) -> _Ranked:
        both = _Ranked(
            np.concatenate([self.slot_p, active.slot_p]),
            np.concatenate([self.row_p, active.row_p]),
            np.concatenate([self.value_p, active.value_p]),
            np.concatenate([self.key_p, key_p]),
        )
        return both.taken(np.lexsort((both.row_p, both.key_p, both.slot_p)))

    def first(self, wanted: int) -> _Ranked:
        """The first `wanted` of each latent."""
        place_p = np.arange(len(self.slot_p)) - np.searchsorted(self.slot_p, self.slot_p)
        return self.taken(np.flatnonzero(place_p < wanted))

    def without(self, other: _Ranked, n_rows: int) -> _Ranked:
        """The pairs that are not among the other's."""
        own, others = (ranked.slot_p * n_rows + ranked.row_p for ranked in (self, other))
        return self.taken(np.flatnonzero(~np.isin(own, others)))

    def taken(self, chosen: NDArray[np.int64]) -> _Ranked:
        return _Ranked(self.slot_p[chosen], self.row_p[chosen], self.value_p[chosen], self.key_p[chosen])
