"""The unit every corpus yields."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text with a name that stays the same when the corpus around it grows."""

    id: str
    text: str
    corpus: str

    @property
    def sha256(self) -> str:
        """Hex digest of the text."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


def list_hash(pairs: Iterable[tuple[str, str]]) -> str:
    """Hash of (document id, content hash) pairs, independent of their order."""
    digest = hashlib.sha256()
    for name, content in sorted(pairs):
        digest.update(f"{name}\0{content}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
