"""The untrained twin of a subject: its architecture and tokenizer, with weights as its initialisation draws them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sae_pipeline.subjects.source import determining

SEED: Final = 0
VERSION: Final = 1
"""Raise it when the weights drawn for one configuration change: by another way of drawing, or by another library."""


def untrained_fingerprint(config: dict[str, Any]) -> str:
    """Name a twin by what its weights follow from: what `config.json` says, the seed, and how they are drawn.

    Args:
        config: the content of `config.json`. The same file from the hub and from a folder gives the same twin.
    """
    drawn = json.dumps({"weights": "untrained", "seed": SEED, "version": VERSION})
    return hashlib.sha256((determining(config) + drawn).encode()).hexdigest()


def draw_untrained(hf: Any, *, dtype: torch.dtype, attention: str) -> nn.Module:
    """Build a model with the weights its architecture starts training from, a function of its configuration alone.

    They are drawn in float32 on the CPU and then cast. The caller's random state is left as it was.

    Args:
        hf: the Hugging Face config.
        dtype: of the model.
        attention: attention kernel, `sdpa` or `eager`.
    """

    def build(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_config(hf, dtype=dtype, attn_implementation=attention)

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # `torch.manual_seed` would seed the generators of the GPUs too.
        torch.default_generator.manual_seed(SEED)
        drawn = build(torch.float32)
        if dtype != torch.float32:
            # Built anew and filled, not cast as a whole: buffers (rotary frequencies) keep the precision of a loaded
            # model's.
            drawn, weights = build(dtype), drawn.state_dict()
            drawn.load_state_dict(weights)
    model: nn.Module = drawn
    return model
