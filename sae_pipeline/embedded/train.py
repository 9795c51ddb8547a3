"""One model from text to card: tokenizer, training, measurement, files. `family.py` says which models there are."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_pipeline.embedded.bpe import TOKENIZER_CONFIG, encode, train_bpe
from sae_pipeline.embedded.card import card_text
from sae_pipeline.embedded.corpus import Split, split_documents
from sae_pipeline.embedded.loop import train_model
from sae_pipeline.embedded.measure import PROMPTS, Ids, held_out_loss, sample, training_flops
from sae_pipeline.embedded.ngram import NGram
from sae_pipeline.embedded.plan import Plan
from sae_pipeline.store import Progress, silent, write_json_atomic
from sae_pipeline.store.atomic import make_dir, replace
from sae_pipeline.tokens.documents import Document
from sae_pipeline.tokens.overlap import WINDOW_TOKENS, window_overlap

SAMPLE_TOKENS = 120
HELD_OUT_CONTEXTS = 2000
BASELINES = {"unigram": 1, "bigram": 2, "5-gram": 5}


@dataclass(frozen=True)
class Text:
    """The documents, divided and in tokens: the same for every model of a seed and vocabulary."""

    split: Split
    tokenizer: Any
    train_ids: list[Ids]
    held_out_ids: list[Ids]

    @property
    def stream(self) -> Ids:
        """All training documents behind each other."""
        return np.concatenate(self.train_ids)


def prepare(documents: Sequence[Document], plan: Plan, *, progress: Progress = silent) -> Text:
    """Divide the documents, train the tokenizer on those for training, encode all. ValueError if they are too few."""
    split = split_documents(documents, seed=plan.seed, progress=progress)
    tokenizer = train_bpe((document.text for document in split.train), plan.vocab_size)
    if tokenizer.get_vocab_size() != plan.vocab_size:
        raise ValueError(
            f"the text yields {tokenizer.get_vocab_size()} BPE entries; ask for fewer than {plan.vocab_size}"
        )
    train_ids, held_out_ids = (
        encode(tokenizer, [document.text for document in part]) for part in (split.train, split.held_out)
    )
    return Text(split, tokenizer, train_ids, held_out_ids)


def build(
    text: Text,
    plan: Plan,
    out_dir: Path,
    *,
    stop_after: int | None = None,
    max_held_out_contexts: int = HELD_OUT_CONTEXTS,
    progress: Progress = silent,
) -> dict[str, Any] | None:
    """Train a model, write it in half precision with its card into `out_dir`, return the card.

    None if stopped early (see `train_model`).
    """
    work_dir = out_dir / "work"
    make_dir(work_dir)
    data = text.split.record()
    model = train_model(
        plan, text.stream, work_dir, fingerprint=data["list_sha256"], stop_after=stop_after, progress=progress
    )
    if model is None:
        return None
    model = model.half().float()  # what is measured is what is shipped
    card = {
        "name": out_dir.name,
        "architecture": plan.architecture,
        "data": data,
        "held_out": [document.id for document in text.split.held_out],
        "train": [document.id for document in text.split.train],
        "plan": plan.to_json(),
        "size": _sizes(model, plan, text),
        "loss": held_out_loss(
            model, text.held_out_ids, context=plan.n_positions, max_contexts=max_held_out_contexts, progress=progress
        ),
        "baselines": {
            name: NGram(text.stream, plan.vocab_size, order=order).nats_per_token(text.held_out_ids)
            for name, order in BASELINES.items()
        },
        "overlap": _overlap(text),
        "samples": [
            sample(model, text.tokenizer, prompt, n_tokens=SAMPLE_TOKENS, seed=plan.seed) for prompt in PROMPTS
        ],
    }
    _write(out_dir, model.half(), text.tokenizer, card)
    shutil.rmtree(work_dir)
    return card


def _sizes(model: Any, plan: Plan, text: Text) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_tokens": plan.tokens,
        "training_flops": training_flops(model, plan.tokens, plan.mean_context),
        "stream_tokens": sum(ids.size for ids in text.train_ids),
        "held_out_tokens": sum(ids.size for ids in text.held_out_ids),
    }


def _overlap(text: Text) -> dict[str, Any]:
    overlap = window_overlap(text.held_out_ids, text.train_ids)
    pairs = zip((document.id for document in text.split.held_out), overlap.by_document, strict=True)
    highest = sorted(pairs, key=lambda pair: -pair[1])[:5]
    return {
        "window_tokens": WINDOW_TOKENS,
        "windows": overlap.windows,
        "share": overlap.share,
        "highest": {name: round(share, 4) for name, share in highest},
    }


def _write(out_dir: Path, model: Any, tokenizer: Any, card: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir=out_dir) as folder:
        model.save_pretrained(folder)
        for name in ("config.json", "model.safetensors"):
            replace(out_dir / name, Path(folder, name).read_bytes())
    replace(out_dir / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    write_json_atomic(out_dir / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json_atomic(out_dir / "card.json", card)
    replace(out_dir / "card.md", card_text(card).encode())
