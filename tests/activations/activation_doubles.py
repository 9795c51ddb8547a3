"""Contexts in memory and a tiny GPT-2: what the activations room needs from the floors below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from sae_pipeline.store import Draft
from sae_pipeline.study import ActivationsConfig, Site, SubjectConfig
from sae_pipeline.subjects import Subject, load_subject

CONTEXT, VOCAB, D = 12, 80, 16
POST = Site("tiny", 1, "resid_post")


@dataclass
class MemoryContexts:
    """Contexts as `sae_pipeline.tokens.Contexts` gives them: right-padded, some positions not eligible."""

    ids_nl: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    mask_nl: npt.NDArray[np.bool_]
    document: npt.NDArray[np.int32]

    @property
    def n(self) -> int:
        return len(self.ids_nl)

    @property
    def context(self) -> int:
        return self.ids_nl.shape[1]

    @property
    def n_rows(self) -> int:
        return int(self.mask_nl.sum())

    @property
    def row_offsets(self) -> npt.NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.mask_nl.sum(axis=1))]).astype(np.int64)

    def ids(self, a: int, b: int) -> npt.NDArray[np.int64]:
        return self.ids_nl[a:b]

    def row_mask(self, a: int, b: int) -> npt.NDArray[np.bool_]:
        return self.mask_nl[a:b]


@dataclass
class MemoryTokens:
    train: MemoryContexts
    held_out: MemoryContexts

    @property
    def sized_by_rows(self) -> int:
        return self.train.n_rows

    def split(self, name: str) -> Any:
        return getattr(self, name)


def make_contexts(n: int, seed: int, *, full: bool = False) -> MemoryContexts:
    """Documents of 1 to 4 contexts with padded tails; id 0 is excluded wherever it stands; one context has no row."""
    rng = np.random.default_rng(seed)
    ids_nl = rng.integers(1 if full else 0, VOCAB, (n, CONTEXT))
    document = np.repeat(np.arange(n), rng.integers(1, 5, n))[:n].astype(np.int32)
    lengths = np.full(n, CONTEXT)
    tails = np.append(np.diff(document) != 0, True)
    if not full:
        lengths[tails] = rng.integers(1, CONTEXT + 1, int(tails.sum()))
        lengths[n // 2], ids_nl[n // 2, 0] = 1, 0
    present_nl = np.arange(CONTEXT) < lengths[:, None]
    ids_nl[~present_nl] = 0
    return MemoryContexts(ids_nl, lengths, present_nl & (ids_nl != 0), document)


def make_tokens(n: int = 60, *, full: bool = False) -> MemoryTokens:
    return MemoryTokens(make_contexts(n, 1, full=full), make_contexts(30, 2, full=full))


def tiny_subject(folder: Path, *, dtype: str = "float32", **shape: Any) -> Subject:
    """A random 3-layer GPT-2, saved and loaded as a user's would be."""
    settings = {"n_embd": D, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": VOCAB} | shape
    torch.manual_seed(11)
    model = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = SubjectConfig(alias="tiny", id=str(folder), dtype=dtype, device="cpu")
    return load_subject(config, root=folder)


def open_draft(path: Path, stage: str = "activations") -> Draft:
    return Draft.open(path, stage=stage, key="tiny", identity="0" * 64, lineage={})


def config_of(dtype: str = "float32", *, shard_tokens: int = 128, micro_batch: int = 5) -> ActivationsConfig:
    return ActivationsConfig(dtype=dtype, shard_tokens=shard_tokens, micro_batch=micro_batch)


def shards_of(draft: Draft) -> list[Any]:
    array = draft.array("acts")
    return [array.read_shard(i) for i in range(array.n_shards)]
