"""What the card says about a trained model: held-out loss beside baselines, loss by position, samples, compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_pipeline.embedded.bpe import END_OF_TEXT_ID
from sae_pipeline.embedded.loop import token_losses
from sae_pipeline.store import Progress, silent

Ids = NDArray[np.int64]
_PRODUCTS = ("Conv1D", "Linear")
PROMPTS = ("", "import ", "class Queue:\n    def __init__(self", 'def read(path):\n    """')


def held_out_loss(
    model: Any, documents: Sequence[Ids], *, context: int, max_contexts: int, progress: Progress = silent
) -> dict[str, Any]:
    """Held-out nats per token over full contexts that never cross documents, and their mean by position.

    Position p holds the loss of predicting token p + 1 of the context from the p + 1 tokens up to it.
    """
    windows = [ids[at : at + context + 1] for ids in documents for at in range(0, ids.size - context, context)]
    if not windows:
        raise ValueError(f"no held-out document has {context + 1} tokens; use a shorter context")
    chosen = np.random.default_rng(0).permutation(len(windows))[:max_contexts]
    total = np.zeros(context)
    with torch.no_grad():
        for start in range(0, chosen.size, 16):
            batch = np.stack([windows[i] for i in chosen[start : start + 16]])
            total += token_losses(model, torch.from_numpy(batch)).sum(0).double().numpy()
            progress.update(start + len(batch), chosen.size, "held-out contexts")
    by_position = total / chosen.size
    return {
        "context": context,
        "tokens": int(chosen.size) * context,
        "nats_per_token": float(by_position.mean()),
        "nats_by_position": [round(float(value), 4) for value in by_position],
    }


def training_flops(model: Any, tokens: int, context: float) -> float:
    """FLOPs of forward and backward over `tokens` tokens in contexts of mean length `context`.

    6 per weight of a matrix product and token, 12 per layer, channel and position for attention (PaLM, appendix B). The
    tied unembedding counts, the look-ups of token and position embeddings do not.
    """
    config = model.config
    products = sum(module.weight.numel() for module in model.modules() if type(module).__name__ in _PRODUCTS)
    return float(tokens * (6 * products + 12 * config.num_hidden_layers * config.hidden_size * context))


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompt: str, *, n_tokens: int, seed: int) -> str:
    """Continue `prompt` (after `<|endoftext|>`) by `n_tokens` tokens at temperature 0.8."""
    generator = torch.Generator().manual_seed(seed)
    ids = [END_OF_TEXT_ID, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    for _ in range(n_tokens):
        window = torch.tensor([ids[-model.config.max_position_embeddings :]])
        probabilities = torch.softmax(model(input_ids=window, use_cache=False).logits[0, -1].float() / 0.8, -1)
        ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return str(tokenizer.decode(ids[1:], skip_special_tokens=False))
