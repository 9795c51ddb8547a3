"""A tokenizer that needs no model, and corpora made of words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sae_pipeline.store import Draft
from sae_pipeline.study import Corpus


class ByteTokenizer:
    """Every byte is a token (id = byte + 2); 0 is BOS and EOS, 1 pads, byte 255 plays a special token inside text."""

    bos_id: int | None = 0
    eos_id: int | None = 0
    pad_id = 1
    special_ids = frozenset({0, 1, ord("@") + 2})
    vocab_size = 258
    fingerprint = "bytes"

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[byte + 2 for byte in text.encode()] for text in texts]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - 2 for i in ids if i > 1).decode()


class NoBosTokenizer(ByteTokenizer):
    bos_id = None


def random_text(generator: np.random.Generator, n_words: int, vocabulary: int = 500) -> str:
    return " ".join(f"w{i}" for i in generator.integers(vocabulary, size=n_words))


def write_jsonl(path: Path, texts: Sequence[str], field: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


def corpus(source: object, name: str = "c", **fields: object) -> Corpus:
    return Corpus(name=name, source=str(source), **fields)  # type: ignore[arg-type]


def new_draft(path: Path) -> Draft:
    return Draft.open(path, stage="tokens", key="tokens", identity="0" * 64, lineage={})
