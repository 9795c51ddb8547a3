"""Train a small code model on the running interpreter's standard library.

    python -m sae_pipeline.embedded.train --out DIR --minutes 15

writes `model.safetensors`, `config.json`, `tokenizer.json`, `tokenizer_config.json`, `card.json` and `card.md`.
Killed and started again with the same arguments it resumes from `DIR/work/` and ends with the same bits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_pipeline.embedded.bpe import TOKENIZER_CONFIG, encode, train_bpe
from sae_pipeline.embedded.card import card_text
from sae_pipeline.embedded.corpus import Split, split_documents
from sae_pipeline.embedded.loop import new_model, token_losses, train_model
from sae_pipeline.embedded.measure import PROMPTS, Ids, baselines, held_out_loss, sample, training_flops
from sae_pipeline.embedded.plan import Plan, batch_at
from sae_pipeline.store import Console, Progress, read_json, reuse_freed_memory, silent, write_json_atomic
from sae_pipeline.store.atomic import make_dir, replace
from sae_pipeline.tokens.documents import Document
from sae_pipeline.tokens.overlap import WINDOW_TOKENS, window_overlap
from sae_pipeline.tokens.stdlib import stdlib_documents

SAMPLE_TOKENS = 120


def build(
    documents: Sequence[Document],
    plan: Plan,
    out_dir: Path,
    *,
    stop_after: int | None = None,
    max_held_out_contexts: int = 1600,
    progress: Progress = silent,
) -> dict[str, Any] | None:
    """Train tokenizer and model on `documents`, write them and their card into `out_dir`, return the card.

    None if stopped early (see `train_model`). Raises ValueError if the text is too small for the plan.
    """
    work_dir = out_dir / "work"
    make_dir(work_dir)
    split = split_documents(documents, seed=plan.seed, progress=progress)
    tokenizer = train_bpe((document.text for document in split.train), plan.vocab_size)
    if tokenizer.get_vocab_size() != plan.vocab_size:
        raise ValueError(
            f"the text yields {tokenizer.get_vocab_size()} BPE entries; ask for fewer than {plan.vocab_size}"
        )
    train_ids = encode(tokenizer, [document.text for document in split.train])
    held_out_ids = encode(tokenizer, [document.text for document in split.held_out])
    data = split.record()
    model = train_model(
        plan,
        np.concatenate(train_ids),
        work_dir,
        fingerprint=data["list_sha256"],
        stop_after=stop_after,
        progress=progress,
    )
    if model is None:
        return None
    card = {
        "name": out_dir.name,
        "architecture": "gpt2",
        "data": data,
        "held_out": [document.id for document in split.held_out],
        "train": [document.id for document in split.train],
        "plan": plan.to_json(),
        "size": _sizes(model, plan, train_ids, held_out_ids),
        "loss": held_out_loss(
            model, held_out_ids, context=plan.n_positions, max_contexts=max_held_out_contexts, progress=progress
        ),
        "baselines": baselines(np.concatenate(train_ids), held_out_ids, plan.vocab_size),
        "overlap": _overlap(split, train_ids, held_out_ids),
        "samples": [sample(model, tokenizer, text, n_tokens=SAMPLE_TOKENS, seed=plan.seed) for text in PROMPTS],
    }
    _write(out_dir, model, tokenizer, card)
    shutil.rmtree(work_dir)
    return card


def _sizes(model: Any, plan: Plan, train_ids: list[Ids], held_out_ids: list[Ids]) -> dict[str, Any]:
    steps_short, steps_long = plan.first_long_step, plan.steps - plan.first_long_step
    mean_context = (steps_short * plan.short_context + steps_long * plan.n_positions) / plan.steps
    tokens = plan.steps * plan.batch_tokens
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_tokens": tokens,
        "training_flops": training_flops(model, tokens, mean_context),
        "stream_tokens": sum(ids.size for ids in train_ids),
        "held_out_tokens": sum(ids.size for ids in held_out_ids),
    }


def _overlap(split: Split, train_ids: list[Ids], held_out_ids: list[Ids]) -> dict[str, Any]:
    overlap = window_overlap(held_out_ids, train_ids)
    pairs = zip((document.id for document in split.held_out), overlap.by_document, strict=True)
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


def _steps_in(minutes: float, seed: int) -> int:
    """Steps that fit, judged by a few untimed-then-timed ones on a throw-away model."""
    plan = Plan(steps=10, seed=seed)
    model, stream = new_model(plan), np.random.default_rng(0).integers(plan.vocab_size, size=4 * plan.batch_tokens)
    for step in range(16):
        if step == 4:
            start = time.monotonic()
        token_losses(model, torch.from_numpy(batch_at(stream, plan, step % 4))).mean().backward()  # type: ignore[no-untyped-call]
    return max(1, int(60 * minutes / ((time.monotonic() - start) / 12)))


def _plan(arguments: argparse.Namespace, out_dir: Path) -> Plan:
    """The plan of a run, fixed when it first starts: how many steps fit in some minutes differs from time to time."""
    asked = {"steps": arguments.steps, "minutes": arguments.minutes, "seed": arguments.seed}
    path = out_dir / "work" / "plan.json"
    if path.exists():
        found = read_json(path)
        if found["asked"] == asked:
            return Plan(steps=found["steps"], seed=arguments.seed)
        raise SystemExit(f"{path.parent} holds a run started with {found['asked']}; repeat that, or delete the folder")
    steps = arguments.steps or _steps_in(arguments.minutes, arguments.seed)
    make_dir(path.parent)
    write_json_atomic(path, {"asked": asked, "steps": steps})
    return Plan(steps=steps, seed=arguments.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of `python -m sae_pipeline.embedded.train`."""
    parser = argparse.ArgumentParser(description="Train a small code model on this interpreter's standard library.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the model; its name becomes the model's name"
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="training time; fixed into a number of steps at the first start")
    budget.add_argument("--steps", type=int, help="training steps of 1,024 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="torch threads; results are bit-equal at the same number only")
    arguments = parser.parse_args(argv)
    reuse_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out_dir = arguments.out.absolute()
    plan = _plan(arguments, out_dir)
    print(f"{plan.steps} steps of {plan.batch_tokens} tokens, {torch.get_num_threads()} threads", file=sys.stderr)
    card = build(list(stdlib_documents()), plan, out_dir, progress=Console("embedded"))
    assert card is not None
    print(f"held-out {card['loss']['nats_per_token']:.3f} nats per token; card at {out_dir / 'card.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
