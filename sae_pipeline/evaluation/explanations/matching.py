"""Patterns of all latents as one trie of reversed tokens in arrays, followed from many rows at once.

A walk that takes the literal child where there is one misses patterns that only the wildcard leads to. Here a row is in
a set of nodes, both children are followed, and a latent's prediction is the largest value over the leaves reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sae_pipeline.evaluation.explanations.corpus import Corpus, IntArray
from sae_pipeline.evaluation.explanations.patterns import ANY, ANYWHERE, Pattern
from sae_pipeline.evaluation.inputs import FloatArray

_STATES_AT_ONCE: Final = 1 << 21


@dataclass(frozen=True)
class Matcher:
    """A compiled set of patterns; node 0 is the root.

    Attributes:
        slots: latents that patterns may name.
        key_e, child_e: edges by rising key node · vocabulary + token.
        vocabulary: one more than the largest token of a pattern.
        any_n: the wildcard child of each node, −1 if it has none.
        leaf_from_n: leaves of node i are leaf_from_n[i] to leaf_from_n[i + 1].
        slot_f, value_f, start_f: of each leaf (`Pattern`).
        depth: tokens of the longest pattern.
        states: the most nodes that one row can be in.
    """

    slots: int
    key_e: IntArray
    child_e: IntArray
    vocabulary: int
    any_n: IntArray
    leaf_from_n: IntArray
    slot_f: IntArray
    value_f: FloatArray
    start_f: IntArray
    depth: int
    states: int

    @classmethod
    def of(cls, patterns: Sequence[Pattern], slots: int) -> Matcher:
        """Compile patterns of latents 0 to `slots` − 1."""
        children: list[dict[int, int]] = [{}]
        leaves: list[tuple[int, Pattern]] = []
        for pattern in patterns:
            node = 0
            for token in reversed(pattern.tokens):
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
            leaves.append((node, pattern))
        leaves.sort(key=lambda leaf: leaf[0])
        vocabulary = 1 + max((token for child in children for token in child), default=0)
        edges = sorted((i * vocabulary + t, c) for i, of in enumerate(children) for t, c in of.items() if t != ANY)
        return cls(
            slots=slots,
            key_e=np.array([key for key, _ in edges], np.int64),
            child_e=np.array([child for _, child in edges], np.int64),
            vocabulary=vocabulary,
            any_n=np.array([of.get(ANY, -1) for of in children], np.int64),
            leaf_from_n=np.searchsorted([node for node, _ in leaves], np.arange(len(children) + 1)),
            slot_f=np.array([leaf.slot for _, leaf in leaves], np.int64),
            value_f=np.array([leaf.value for _, leaf in leaves], np.float64),
            start_f=np.array([leaf.start for _, leaf in leaves], np.int64),
            depth=max((len(pattern.tokens) for pattern in patterns), default=0),
            states=max(1, len({pattern.tokens for pattern in patterns})),
        )

    def predict(self, corpus: Corpus, start: int, stop: int) -> FloatArray:
        """The predicted activation of each latent on rows `start` to `stop`, [rows, slots]; 0 where nothing matches."""
        predicted_rs = np.zeros((stop - start, self.slots))
        step = max(1, _STATES_AT_ONCE // self.states)
        for a in range(start, stop, step):
            rows = slice(a, min(a + step, stop))
            part_rs = predicted_rs[rows.start - start : rows.stop - start]
            for row_m, leaf_m in self._matches(corpus, rows):
                np.maximum.at(part_rs, (row_m, self.slot_f[leaf_m]), self.value_f[leaf_m])
        return predicted_rs

    def _matches(self, corpus: Corpus, rows: slice) -> Iterator[tuple[IntArray, IntArray]]:
        """Pairs of a row, from the first of `rows` on, and a leaf that it reaches; one step of all rows at a time."""
        context_r, position_r = corpus.context_r[rows], corpus.position_r[rows]
        row_s = np.arange(len(context_r))
        node_s = np.zeros(len(row_s), np.int64)
        for back in range(self.depth):
            there = position_r[row_s] >= back
            row_s, node_s = row_s[there], node_s[there]
            token_s = corpus.ids_cl[context_r[row_s], position_r[row_s] - back]
            row_s, node_s = self._step(row_s, node_s, token_s)
            if not len(row_s):
                return
            row_m, leaf_m = self._leaves(row_s, node_s)
            fits = (self.start_f[leaf_m] == ANYWHERE) | (self.start_f[leaf_m] == position_r[row_m] - back)
            yield row_m[fits], leaf_m[fits]

    def _step(self, row_s: IntArray, node_s: IntArray, token_s: IntArray) -> tuple[IntArray, IntArray]:
        """Every state's literal child for its token, and its wildcard child."""
        key_s = node_s * self.vocabulary + token_s
        edge_s = np.minimum(np.searchsorted(self.key_e, key_s), max(0, len(self.key_e) - 1))
        literal = np.zeros(len(row_s), np.bool_)
        if len(self.key_e):
            # a token beyond the vocabulary would have the key of another node's edge
            literal = (self.key_e[edge_s] == key_s) & (token_s < self.vocabulary)
        wild_s = self.any_n[node_s]
        wild = wild_s >= 0
        children = self.child_e[edge_s[literal]], wild_s[wild]
        return np.concatenate([row_s[literal], row_s[wild]]), np.concatenate(children)

    def _leaves(self, row_s: IntArray, node_s: IntArray) -> tuple[IntArray, IntArray]:
        first_s, count_s = self.leaf_from_n[node_s], np.diff(self.leaf_from_n)[node_s]
        before_s = np.cumsum(count_s) - count_s
        leaf_m = np.arange(int(count_s.sum())) + np.repeat(first_s - before_s, count_s)
        return np.repeat(row_s, count_s), leaf_m
