"""One face for every subject's tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from sae_pipeline.study import SubjectConfig
from sae_pipeline.subjects.errors import SubjectError
from sae_pipeline.subjects.source import Source, locate

VOCABULARIES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files that hold a vocabulary, one of which a tokenizer needs."""


class SubjectTokenizer:
    """A fast tokenizer with its special tokens settled.

    Text is encoded as it stands: no special tokens are added and none is recognised inside the text.

    Attributes:
        bos_id: the declared beginning-of-text token, else the end-of-text token (models packed from documents use one
            for both), else None.
        eos_id: the declared end-of-text token, or None.
        pad_id: the declared padding token, else eos, else bos, else 0. Padding stands to the right of a causal model's
            tokens, so its value never reaches a result.
        special_ids: ids of all special tokens.
        vocab_size: number of entries, added tokens included.
        largest_id: the largest id that text or padding can become; special tokens that are no bos or pad do not count
            (Gemma-3's tokenizer has one more than its text models).
        fingerprint: sha256 of the serialised tokenizer and of the special ids.
    """

    def __init__(self, backend: Any, roles: Mapping[str, int | None]) -> None:
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self.vocab_size = int(backend.get_vocab_size(with_added_tokens=True))
        bos, eos, pad = (self._valid(roles.get(role)) for role in ("bos", "eos", "pad"))
        self.eos_id = eos
        self.bos_id = bos if bos is not None else eos
        self.pad_id = next((i for i in (pad, eos, bos) if i is not None), 0)
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(special | {i for i in (bos, eos, pad) if i is not None})
        ordinary = (i for i in backend.get_vocab(with_added_tokens=True).values() if i not in self.special_ids)
        self.largest_id = max([*ordinary, self.pad_id, self.bos_id or 0])
        settled = json.dumps([self.bos_id, self.eos_id, self.pad_id, sorted(self.special_ids)])
        self.fingerprint = hashlib.sha256((backend.to_str() + settled).encode()).hexdigest()

    def _valid(self, token_id: int | None) -> int | None:
        # A config.json may carry another vocabulary's default ids (GPT-2: 50256).
        return token_id if token_id is not None and 0 <= token_id < self.vocab_size else None

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoding.ids for encoding in self._encode(texts)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and for each token its span [start, end) in characters of the text."""
        encoding = self._encode([text])[0]
        return list(encoding.ids), [(int(start), int(end)) for start, end in encoding.offsets]

    def _encode(self, texts: list[str]) -> list[Any]:
        return list(self._backend.encode_batch(texts, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self._backend.decode(ids, skip_special_tokens=False))


def load_tokenizer(config: SubjectConfig, *, root: Path) -> SubjectTokenizer:
    """Load the tokenizer of a subject.

    Args:
        config: the subject part of a study.
        root: folder that a relative local path starts from.

    Raises:
        SubjectError: the subject or its tokenizer cannot be found, or there is only a slow (Python) tokenizer.
    """
    return tokenizer_of(locate(config, root=root, weights=False))


def tokenizer_of(source: Source) -> SubjectTokenizer:
    """Load the tokenizer of a located subject; see `load_tokenizer`."""
    if not any((source.folder / name).exists() for name in VOCABULARIES):
        # transformers would silently build an empty tokenizer from config.json alone.
        raise _no_tokenizer(source, f"it holds none of {', '.join(VOCABULARIES)}")
    bare = source.folder / "tokenizer.json"
    if bare.exists() and not (source.folder / "tokenizer_config.json").exists():
        return _from_file(source, bare)
    try:
        loaded = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except Exception as error:  # transformers raises many types here; all of them mean that there is no tokenizer
        raise _no_tokenizer(source, error) from error
    if not loaded.is_fast:
        raise SubjectError(f"subject {source.name!r} has a slow tokenizer only; save a tokenizer.json beside it")
    roles = {role: getattr(loaded, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    return SubjectTokenizer(loaded.backend_tokenizer, roles)


def _no_tokenizer(source: Source, cause: object) -> SubjectError:
    return SubjectError(
        f"subject {source.name!r}: no tokenizer could be loaded from {source.folder}: {cause}. "
        "Save one beside the model with tokenizer.save_pretrained"
    )


def _from_file(source: Source, path: Path) -> SubjectTokenizer:
    """A bare tokenizer.json is the whole truth: AutoTokenizer would rebuild it by the model type's habits."""
    try:
        backend = RustTokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise SubjectError(
            f"subject {source.name!r}: tokenizer.json cannot be read ({error}); save it again"
        ) from error
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    return SubjectTokenizer(backend, {role: config.get(f"{role}_token_id") for role in ("bos", "eos", "pad")})
