"""What the shipped models are trained on, and which documents they never see."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_pipeline.store import Progress, silent
from sae_pipeline.tokens.documents import Document, list_hash
from sae_pipeline.tokens.near_duplicates import lexical_tokens, near_duplicate_clusters

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Split:
    """Documents for training and documents kept from model and tokenizer alike."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]

    def record(self) -> dict[str, Any]:
        """What was found, as the card tells it."""
        everything = (*self.train, *self.held_out)
        return {
            "python": platform.python_version(),
            "documents": len(everything),
            "characters": sum(len(document.text) for document in everything),
            "list_sha256": list_hash((document.id, document.sha256) for document in everything),
            "has_tests": any(document.id.startswith("test/") for document in everything),
        }


def split_documents(
    documents: Sequence[Document], *, share: float = HELD_OUT_SHARE, seed: int, progress: Progress = silent
) -> Split:
    """Hold out whole near-duplicate clusters until `share` of the documents is reached.

    Clusters come in the order of a seeded hash of their smallest member's name. Raises ValueError below two documents.
    """
    if len(documents) < 2:
        raise ValueError(f"{len(documents)} documents cannot be split; the corpus needs at least two")
    labels = near_duplicate_clusters([lexical_tokens(d.text) for d in documents], progress=progress).tolist()
    clusters: dict[int, list[Document]] = {}
    for document, label in zip(documents, labels, strict=True):
        clusters.setdefault(label, []).append(document)
    held_out: list[Document] = []
    train: list[Document] = []
    for members in sorted(clusters.values(), key=lambda group: _order(min(d.id for d in group), seed)):
        (held_out if len(held_out) < share * len(documents) else train).extend(members)
    return Split(tuple(sorted(train, key=_name)), tuple(sorted(held_out, key=_name)))


def _order(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def _name(document: Document) -> str:
    return document.id
