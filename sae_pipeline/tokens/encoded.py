"""All documents of a build as token ids in one file on disk: too many for memory, read again for several passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.tokens.documents import Document
from sae_pipeline.tokens.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 21


class Encoded(Sequence[NDArray[np.int32]]):
    """Documents as token ids (no special tokens added), and their names; item i reads document i from disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: NDArray[np.int32] | None = None
        self.names: list[str] = []
        self.corpora: list[str] = []
        self.characters: list[int] = []
        self.sha256: list[str] = []
        self._starts: list[int] = []
        self._lengths: list[int] = []
        path.write_bytes(b"")

    def add(self, source: Iterable[Document], tokenizer: Tokenizer) -> Iterator[int]:
        """Encode and append batch by batch; yields each batch's number of tokens. One without tokens is dropped."""
        for batch in _batches(source):
            encoded = tokenizer.encode_batch([document.text for document in batch])
            with self._path.open("ab") as file:
                for document, ids in zip(batch, encoded, strict=True):
                    if ids:
                        file.write(np.asarray(ids, np.int32).tobytes())
                        self._note(document, len(ids))
            self._map = None
            yield sum(map(len, encoded))

    def _note(self, document: Document, n_tokens: int) -> None:
        self.names.append(document.id)
        self.corpora.append(document.corpus)
        self.characters.append(len(document.text))
        self.sha256.append(document.sha256)
        self._starts.append(self._starts[-1] + self._lengths[-1] if self._starts else 0)
        self._lengths.append(n_tokens)

    def arrange(self, order: Sequence[int]) -> None:
        """Number the documents anew: number i becomes the one that was `order[i]`. Nothing may be added afterwards."""
        for name in ("names", "corpora", "characters", "sha256", "_starts", "_lengths"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in order])

    @property
    def n_tokens(self) -> NDArray[np.int64]:
        """Tokens of each document, `[documents]`."""
        return np.asarray(self._lengths, np.int64)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each document begins in `flat`, `[documents]`."""
        return np.asarray(self._starts, np.int64)

    @property
    def flat(self) -> NDArray[np.int32]:
        """All ids, one document after the other as they were read, mapped from disk; there must be a document."""
        if self._map is None:
            self._map = np.memmap(self._path, np.int32, "r")
        return self._map

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, i: int) -> NDArray[np.int32]: ...
    @overload
    def __getitem__(self, i: slice) -> list[NDArray[np.int32]]: ...
    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.flat[self._starts[i] : self._starts[i] + self._lengths[i]]


def _batches(source: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in source:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
