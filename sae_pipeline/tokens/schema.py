"""Names and sizes of what a tokens artefact holds."""

from __future__ import annotations

from sae_pipeline.tokens.split import HELD_OUT, TRAIN

SPLITS = (TRAIN, HELD_OUT)
LAYOUT = "layout.json"
DOCUMENTS = "documents.parquet"
FILES = "files.json"
"""SHA-256 of every file of the corpora that are local files, by corpus and file; absent if there are none."""
SHARD_CONTEXTS = 1 << 14
CHUNK_CONTEXTS = 1 << 10


def ids_array(split: str) -> str:
    """Name of the array of token ids, `[contexts, L]`."""
    return f"{split}_ids"


def index_array(split: str) -> str:
    """Name of the array `[contexts, 4]`: document, position of the first token in the document, length, rows."""
    return f"{split}_index"
