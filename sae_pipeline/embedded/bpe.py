"""The tokenizer of the shipped models: byte-level BPE, reversible, with one special token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
    "clean_up_tokenization_spaces": False,
}


def train_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a `tokenizers.Tokenizer`: GPT-2's byte-level pre-tokenisation, `<|endoftext|>` as id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Any, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Token ids of each text, each with `<|endoftext|>` in front."""
    encoded: list[NDArray[np.int64]] = []
    for start in range(0, len(texts), 256):
        batch = tokenizer.encode_batch_fast(texts[start : start + 256], add_special_tokens=False)
        encoded += [np.asarray([END_OF_TEXT_ID, *item.ids], dtype=np.int64) for item in batch]
    return encoded
