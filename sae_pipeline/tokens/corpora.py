"""One way to every corpus: its documents, and the identity of its content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_pipeline.store import Progress, silent
from sae_pipeline.study import Corpus
from sae_pipeline.tokens.documents import Document, list_hash
from sae_pipeline.tokens.files import digest_files, find_files, fingerprint_files, read_files
from sae_pipeline.tokens.hub import PREFIX, fingerprint_hub, read_hub, resolve_commit
from sae_pipeline.tokens.stdlib import stdlib_documents

STDLIB = "stdlib"


def documents(corpus: Corpus, *, root: Path, progress: Progress = silent) -> Iterator[Document]:
    """Yield the corpus's documents in a fixed order; blank ones are left out.

    `root` is the folder that relative sources start from. Raises CorpusError (bad files, unreachable hub).
    """
    if corpus.source == STDLIB:
        yield from stdlib_documents(corpus=corpus.name)
        return
    if is_hub(corpus):
        commit = resolve_commit(_dataset(corpus), corpus.revision)
        pairs = read_hub(_dataset(corpus), corpus.subset, commit, corpus.field)
    else:
        pairs = read_files(find_files(corpus.source, root, corpus.field), corpus.field, progress=progress)
    for name, text in pairs:
        if text.strip():
            yield Document(name, text, corpus.name)


def fingerprint(corpus: Corpus, *, root: Path) -> dict[str, Any]:
    """Identity of what `documents` would yield, as JSON: content of local text, resolved commit of a hub dataset."""
    return fingerprint_and_files(corpus, root=root)[0]


def fingerprint_and_files(corpus: Corpus, *, root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The fingerprint of a corpus, and of one in local files the SHA-256 of each by name: what it may grow from."""
    if corpus.source == STDLIB:
        found = [(document.id, document.sha256) for document in stdlib_documents()]
        return {"kind": STDLIB, "documents": len(found), "sha256": list_hash(found)}, {}
    if is_hub(corpus):
        commit = resolve_commit(_dataset(corpus), corpus.revision)
        return fingerprint_hub(_dataset(corpus), corpus.subset, commit), {}
    files = find_files(corpus.source, root, corpus.field)
    digests = digest_files(files)
    return fingerprint_files(files, digests), digests


def is_hub(corpus: Corpus) -> bool:
    """Whether the corpus is streamed from the hub, and so has no end that one would wait for."""
    return corpus.source.startswith(PREFIX)


def _dataset(corpus: Corpus) -> str:
    return corpus.source.removeprefix(PREFIX)
