"""Reading a tokens artefact: contexts of both splits, documents, and where every row comes from."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.store import Artefact, Draft, PipelineError, ShardedArray
from sae_pipeline.tokens.packing import Layout, Packed
from sae_pipeline.tokens.schema import DOCUMENTS, LAYOUT, SPLITS, ids_array, index_array
from sae_pipeline.tokens.split import TRAIN

if TYPE_CHECKING:
    import pandas as pd

BOS_POSITION = -1


class Contexts:
    """The contexts of one split in stored order: training permuted by seed, held-out document by document."""

    def __init__(self, ids: ShardedArray, index: ShardedArray, layout: Layout) -> None:
        self._ids, self._layout = ids, layout
        columns = index.read(0, index.n_rows).T
        self.document: NDArray[np.int32] = np.ascontiguousarray(columns[0])
        self.start: NDArray[np.int32] = np.ascontiguousarray(columns[1])
        self.lengths: NDArray[np.int32] = np.ascontiguousarray(columns[2])
        self.row_offsets: NDArray[np.int64] = np.concatenate([[0], np.cumsum(columns[3], dtype=np.int64)])

    @property
    def n(self) -> int:
        """Number of contexts."""
        return self._ids.n_rows

    @property
    def context(self) -> int:
        """Tokens of a context, padding included: L."""
        return self._ids.shape[1]

    @property
    def n_rows(self) -> int:
        """Positions that become activation rows, over all contexts."""
        return int(self.row_offsets[-1])

    def ids(self, a: int, b: int) -> NDArray[np.int64]:
        """Token ids of contexts a to b, `[b - a, L]`, padded on the right."""
        return self._ids.read(a, b).astype(np.int64)

    def row_mask(self, a: int, b: int) -> NDArray[np.bool_]:
        """Which positions of contexts a to b become rows, `[b - a, L]`; rows are numbered in this order."""
        part = Packed(self.document[a:b], self.start[a:b], self.lengths[a:b])
        return self._layout.row_mask(self._ids.read(a, b), part)

    def locate(self, row: int) -> tuple[int, int]:
        """Context of a row and its position in the context."""
        if not 0 <= row < self.n_rows:
            raise PipelineError(f"row {row} does not exist; there are {self.n_rows}")
        c = int(np.searchsorted(self.row_offsets, row, side="right")) - 1
        positions = np.flatnonzero(self.row_mask(c, c + 1)[0])
        return c, int(positions[row - self.row_offsets[c]])

    def document_position(self, c: int, position: int) -> int:
        """Index of a context's token among its document's tokens; `BOS_POSITION` for a BOS put in front."""
        prefixed = bool(self._layout.prefixed(self.start[c : c + 1])[0])
        return BOS_POSITION if prefixed and position == 0 else int(self.start[c]) + position - prefixed


class Tokens:
    """A tokens artefact, or a draft of one that is complete; make it with `Tokens.open`."""

    def __init__(self, source: Artefact | Draft) -> None:
        self._source = source
        meta = source.read_json(LAYOUT)
        self.vocab_size: int = meta["vocab_size"]
        self.tokenizer_fingerprint: str = meta["tokenizer"]
        self.requested_rows: dict[str, int] = meta["requested_rows"]
        self.generation: int = meta.get("generation", 0)
        self.rows_before: int = meta.get("rows_before", 0)
        self._sized_by_rows: int | None = meta.get("sized_by_rows")
        self.layout = Layout.from_json(meta)
        self._contexts: dict[str, Contexts] = {}

    @classmethod
    def open(cls, source: Artefact | Draft) -> Tokens:
        """Open what `build_tokens` wrote; Damaged if a file or shard is not as written."""
        return cls(source)

    def split(self, name: str) -> Contexts:
        """The contexts of "train" or "held_out"."""
        if name not in SPLITS:
            raise PipelineError(f"split {name!r} is not one of {SPLITS}")
        if name not in self._contexts:
            ids, index = self._source.array(ids_array(name)), self._source.array(index_array(name))
            self._contexts[name] = Contexts(ids, index, self.layout if name == TRAIN else self.layout.whole)
        return self._contexts[name]

    @property
    def sized_by_rows(self) -> int:
        """Training rows that the size of a shard of activations is reckoned from.

        Its own, or in a version that continues another (`generation` > 0, of whose rows the first `rows_before` are the
        other's) those of an earlier one, so that a shard covers the same rows in both.
        """
        return self._sized_by_rows if self._sized_by_rows is not None else self.split(TRAIN).n_rows

    @cached_property
    def documents(self) -> pd.DataFrame:
        """One row per document that was read; `Contexts.document` counts in this order.

        Columns: document, id, corpus, split ("train", "held_out", "excluded": near-duplicate of a held-out one),
        cluster, n_characters, n_tokens, rows (used here), overlap_windows, overlap_share (held-out ones), sha256.
        """
        import pandas as pd

        return pd.read_parquet(self._source.file(DOCUMENTS))

    def trace(self, split: str, row: int) -> tuple[str, int]:
        """Where a row comes from: document id, and its token's position in the document (-1 for a BOS put in front)."""
        contexts = self.split(split)
        c, position = contexts.locate(row)
        name = str(self.documents["id"].iloc[int(contexts.document[c])])
        return name, contexts.document_position(c, position)
