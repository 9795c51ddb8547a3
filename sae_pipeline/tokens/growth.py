"""Growth: a version of the tokens that begins with everything an earlier one holds, so that its shards stay good.

Documents keep their numbers and sides, held-out contexts stay as they were, training contexts come first and in their
order, and the others follow in an order of their own. A build from nothing splits and permutes all text at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.store import PipelineError
from sae_pipeline.tokens.documents import Document
from sae_pipeline.tokens.encoded import Encoded
from sae_pipeline.tokens.packing import Layout, Packed, gather
from sae_pipeline.tokens.read import Tokens
from sae_pipeline.tokens.schema import SHARD_CONTEXTS
from sae_pipeline.tokens.select import Order, cut
from sae_pipeline.tokens.split import EXCLUDED, HELD_OUT, TRAIN
from sae_pipeline.tokens.tokenizer import Tokenizer

_OUTGROWN = 16
"""Times the rows that the size of a shard was reckoned from, above which it is reckoned anew: at 16 shards in the
beginning, more than 256 of them would mix badly. What is stored until then is made again once."""


class Earlier:
    """The version that a build continues: what it read, on which side, and the contexts it holds."""

    def __init__(self, tokens: Tokens, layout: Layout, tokenizer: str, seed: int) -> None:
        if (tokens.layout, tokens.tokenizer_fingerprint) != (layout, tokenizer):
            raise PipelineError("tokens of another tokenizer, context or policy cannot be continued; build them afresh")
        self._tokens, self._seed = tokens, seed
        self._table = tokens.documents
        self.generation = tokens.generation + 1

    @property
    def rows(self) -> int:
        """Training rows that it holds."""
        return self._tokens.split(TRAIN).n_rows

    def read_again(
        self, encoded: Encoded, source: Iterable[Document], tokenizer: Tokenizer, corpus: str, limit: int
    ) -> Iterator[int]:
        """Encode what it read of a corpus, and other documents until `limit` tokens are read; yields tokens by batch.

        What it read counts towards the limit first, wherever it stands among the rest, and is read whatever the limit.
        """
        own = self._table[self._table["corpus"] == corpus]
        known, n_tokens = set(own["id"]), int(own["n_tokens"].sum())
        seen = len(encoded)

        def has_room() -> bool:
            return n_tokens < limit

        for n_batch in encoded.add(_admitted(source, known, has_room), tokenizer):
            fresh = [name not in known for name in encoded.names[seen:]]
            n_tokens += int(encoded.n_tokens[seen:][fresh].sum())
            seen = len(encoded)
            yield n_batch

    def put_first(self, encoded: Encoded) -> None:
        """Give every document that it read its number again; the others follow in the order in which they were read.

        Raises PipelineError if one is not there any more, or not as it was.
        """
        now = {pair: i for i, pair in enumerate(zip(encoded.corpora, encoded.names, strict=True))}
        first = []
        for corpus, name, content in self._table[["corpus", "id", "sha256"]].itertuples(index=False):
            place = now.pop((corpus, name), None)
            if place is None or encoded.sha256[place] != content:
                raise _changed(f"corpus {corpus}: document {name} is not what it was")
            first.append(place)
        encoded.arrange([*first, *now.values()])

    def sides(
        self, encoded: Encoded, clusters: NDArray[np.int64], split_list: Mapping[str, Sequence[str]]
    ) -> NDArray[np.str_]:
        """Side of every document: its own where it was read before.

        Of the others those are excluded that `split_list` holds out or that are near-duplicates of a held-out document;
        the rest is training text. A new document may lie in one cluster with old ones of both sides: they keep theirs.
        """
        old, n = self._table["split"].to_numpy(str), len(self._table)
        listed = {(corpus, name) for corpus, names in split_list.items() for name in names}
        pairs = list(zip(encoded.corpora, encoded.names, strict=True))[n:]
        barred = np.isin(clusters[n:], clusters[:n][old == HELD_OUT])
        barred |= np.array([pair in listed for pair in pairs], dtype=bool)
        return np.concatenate([old, np.where(barred, EXCLUDED, TRAIN)])

    def choose(
        self,
        split: str,
        encoded: Encoded,
        packed: Packed,
        rows: NDArray[np.int64],
        corpus_c: NDArray[np.int64],
        budgets: Sequence[int],
        budget: int,
    ) -> Order:
        """Which contexts to keep and in which order: its own first; of training text, others as the budgets allow.

        `packed`, `rows`, `corpus_c`: all contexts of the split, the rows and the corpus number of each. `budgets`: rows
        for each corpus, by number; `budget`: rows of the whole split. Contexts held before stay even where a corpus has
        more of them than its budget now allows; together they never exceed `budget`.
        """
        first = self._positions(split, encoded, packed, rows)
        if split == HELD_OUT:
            return first
        rest = np.setdiff1d(np.arange(len(packed)), first)
        order = rest[np.random.default_rng([self._seed, 1, self.generation]).permutation(rest.size)]
        held = np.bincount(corpus_c[first], weights=rows[first], minlength=len(budgets)).astype(np.int64)
        return np.concatenate([first, cut(order, rows, corpus_c, _room(np.asarray(budgets), held, budget))])

    def layout_entries(self, n_rows: int) -> dict[str, int]:
        """What `layout.json` says of a version of `n_rows` training rows that continues this one."""
        sized_by = self._tokens.sized_by_rows
        sized_by = sized_by if n_rows <= _OUTGROWN * sized_by else n_rows
        return {"generation": self.generation, "sized_by_rows": sized_by, "rows_before": self.rows}

    def _positions(self, split: str, encoded: Encoded, packed: Packed, rows: NDArray[np.int64]) -> Order:
        """Positions among `packed` of its contexts, in its order, once they are known to be the same."""
        contexts = self._tokens.split(split)
        key_c = (packed.document.astype(np.int64) << 32) + packed.start
        wanted = (contexts.document.astype(np.int64) << 32) + contexts.start
        order = np.argsort(key_c)
        found = order[np.minimum(np.searchsorted(key_c[order], wanted), len(packed) - 1)]
        same = np.array_equal(key_c[found], wanted) and np.array_equal(rows[found], np.diff(contexts.row_offsets))
        for a in range(0, contexts.n if same else 0, SHARD_CONTEXTS):
            b = min(a + SHARD_CONTEXTS, contexts.n)
            ids_cl = gather(encoded.flat, encoded.offsets, packed[found[a:b]], self._tokens.layout)
            same = same and np.array_equal(ids_cl, contexts.ids(a, b))
        if not same:
            raise _changed("the same text gives other tokens (is another version of the tokenizer's library at work?)")
        return found


def _admitted(source: Iterable[Document], known: set[str], has_room: Callable[[], bool]) -> Iterator[Document]:
    """Documents read before, and others while there is room; ends where neither can come any more."""
    waiting = set(known)
    for document in source:
        if document.id in waiting:
            waiting.remove(document.id)
            yield document
        elif has_room():
            yield document
        elif not waiting:
            return


def _room(budgets: NDArray[np.int64], held: NDArray[np.int64], budget: int) -> list[int]:
    """Rows that each corpus may still take: up to its own budget, and together up to that of the split."""
    wanted = np.maximum(0, budgets - held)
    left, asked = max(0, budget - int(held.sum())), int(wanted.sum())
    return [int(n) if asked <= left else int(n) * left // asked for n in wanted]


def _changed(what: str) -> PipelineError:
    return PipelineError(
        f"{what}, so the earlier version of the tokens cannot be continued; run again once the corpora rest, or move "
        "the study's current.json away to build them from nothing"
    )
