"""The card that travels with a shipped model: data, split, hyper-parameters, measurements. It holds no dates."""

from __future__ import annotations

from typing import Any

import numpy as np

_NAMES = {
    "gpt2": "GPT-2-architecture model",
    "llama": "Llama-architecture model (RMSNorm, rotary positions, gated MLP)",
}
POSITIONS_SHOWN = (0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023)


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown, for people."""
    data, loss, size, plan = card["data"], card["loss"], card["size"], card["plan"]
    overlap = card["overlap"]
    by_position = loss["nats_by_position"]
    shown = [p for p in POSITIONS_SHOWN if p < len(by_position)]
    lines = [
        f"# {card['name']}",
        "",
        f"A {_NAMES[card['architecture']]} of Python source text with {size['parameters']:,} parameters: "
        f"{plan['n_layers']} layers, d_model {plan['d_model']}, {plan['n_heads']} heads, {plan['n_positions']} "
        f"positions, tied embeddings, weights in half precision. Its byte-level BPE tokenizer has "
        f"{plan['vocab_size']:,} entries. Made by `python -m sae_pipeline.embedded.family`.",
        "",
        "## Data",
        f"The standard library of Python {data['python']} {'with' if data['has_tests'] else 'without'} its tests: "
        f"{data['documents']:,} files, {data['characters']:,} characters (list sha256 `{data['list_sha256'][:16]}…`). "
        f"{len(card['held_out']):,} files, in whole near-duplicate clusters, were kept from model and tokenizer; "
        f"`card.json` names them. {100 * overlap['share']:.1f} % of their {overlap['window_tokens']}-token windows "
        "occur in training text.",
        "",
        "## Training",
        f"{size['training_tokens']:,} tokens ({size['training_tokens'] / size['stream_tokens']:.2f} passes over "
        f"{size['stream_tokens']:,}), {size['training_flops']:.2e} FLOPs, contexts of {plan['short_context']} "
        f"tokens and, in {100 * _long_share(plan):.0f} % of the steps, {plan['n_positions']}.",
        "",
        "## Held-out loss",
        f"Over {loss['tokens']:,} tokens in contexts of {loss['context']}:",
        "",
        "| | nats per token |",
        "|---|---|",
        f"| this model | {loss['nats_per_token']:.3f} |",
        *(f"| {name} counts (Kneser-Ney) | {nats:.3f} |" for name, nats in reversed(card["baselines"].items())),
        "",
        "| position | " + " | ".join(map(str, shown)) + " |",
        "|---" * (len(shown) + 1) + "|",
        "| nats (mean of the 8 positions around) | "
        + " | ".join(f"{_around(by_position, p):.2f}" for p in shown)
        + " |",
        "",
        "## Samples",
        "Temperature 0.8.",
    ]
    for text in card["samples"]:
        lines += ["", "````python", text.rstrip(), "````"]
    return "\n".join(lines) + "\n"


def _long_share(plan: dict[str, Any]) -> float:
    long_steps = plan["long_share"] * plan["steps"] + plan["polish_long_share"] * plan["polish_steps"]
    return float(long_steps / (plan["steps"] + plan["polish_steps"]))


def _around(values: list[float], position: int) -> float:
    # The first positions differ too much from each other to be averaged.
    if position < 8:
        return values[position]
    return float(np.mean(values[position - 4 : position + 4]))
