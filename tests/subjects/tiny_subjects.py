"""Tiny randomly initialised subjects of every family, saved as Hugging Face would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from sae_pipeline.study import SubjectConfig

D, LAYERS, HEADS, VOCAB, POSITIONS = 32, 3, 4, 300, 48
TEXT = ["def add(first, second):\n    return first + second\n", "for item in items:\n    print(item)\n"] * 20

_SHAPE: dict[str, Any] = {
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 56,
    "max_position_embeddings": POSITIONS,
}
_LLAMA = _SHAPE | {"num_key_value_heads": 2, "head_dim": 12}
_GEMMA = _LLAMA | {"sliding_window": 8, "query_pre_attn_scalar": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS},
    "gpt_neox": _SHAPE,
    "gpt_neox_sequential": _SHAPE | {"use_parallel_residual": False},
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 8},
    "qwen2": {key: value for key, value in _LLAMA.items() if key != "head_dim"},
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": {key: value for key, value in _LLAMA.items() if key != "head_dim"},
    "smollm3": _LLAMA,
    "olmo2": {key: value for key, value in _LLAMA.items() if key != "head_dim"},
    "olmo3": {key: value for key, value in _LLAMA.items() if key != "head_dim"} | {"sliding_window": 8},
}


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def save_subject(folder: Path, family: str, **changes: Any) -> Path:
    """Norm weights are drawn too: at their initial 1 a test could not tell a norm's input scale from its output."""
    settings = FAMILIES[family] | {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = AutoConfig.for_model(family.removesuffix("_sequential"), **(settings | changes))
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def config_of(folder: Path | str, **changes: Any) -> SubjectConfig:
    attention = "eager" if str(folder).endswith("gemma2") else "sdpa"  # all that Hugging Face offers for Gemma-2
    settings = {"alias": "tiny", "id": str(folder), "device": "cpu", "attention": attention}
    return SubjectConfig.model_validate(settings | changes)
