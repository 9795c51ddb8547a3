"""What this room needs of a tokenizer; `subjects` supplies it."""

from __future__ import annotations

from typing import Protocol


class Tokenizer(Protocol):
    """Text to token ids and back, without adding special tokens of its own accord."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int
    special_ids: frozenset[int]
    vocab_size: int
    fingerprint: str

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of some ids."""
        ...
