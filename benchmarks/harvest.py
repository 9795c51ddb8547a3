"""Harvest rate against the bare truncated forward pass of the same model on the same contexts.

The goal is a ratio near 1: hooks, masking, casting, moments, checksums and durable writes should cost next to nothing.
Run `python benchmarks/harvest.py [--tokens N]`; prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel

from sae_pipeline.activations import harvest
from sae_pipeline.store import Draft
from sae_pipeline.study import ActivationsConfig, Site, SubjectConfig
from sae_pipeline.subjects import Subject, load_subject

CONTEXT, VOCAB, D, LAYERS, MICRO_BATCH = 64, 4096, 128, 4, 64
SITE = Site("bench", 2, "resid_post")


@dataclass
class RandomContexts:
    """Full contexts of random ids, in place of the tokens stage."""

    ids_nl: np.ndarray[Any, np.dtype[np.int64]]

    def __post_init__(self) -> None:
        self.n, self.context = self.ids_nl.shape
        self.n_rows = self.ids_nl.size
        self.row_offsets = np.arange(self.n + 1) * self.context

    def split(self, _: str) -> RandomContexts:
        """Both splits are these."""
        return self

    def ids(self, a: int, b: int) -> Any:
        """Token ids of contexts a to b."""
        return self.ids_nl[a:b]

    def row_mask(self, a: int, b: int) -> Any:
        """Every position is eligible."""
        return np.ones((b - a, self.context), bool)


def make_subject(folder: Path) -> Subject:
    config = GPT2Config(
        n_embd=D, n_layer=LAYERS, n_head=4, n_positions=CONTEXT, vocab_size=VOCAB, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(folder / "tokenizer.json"))
    return load_subject(SubjectConfig(alias=SITE.alias, id=str(folder)), root=folder)


def bare_pass(folder: Path, device: torch.device, contexts: RandomContexts) -> Callable[[], None]:
    """Run the same blocks with nothing around them: the model is cut after the site's block."""
    body = GPT2LMHeadModel.from_pretrained(folder).transformer.eval().to(device)
    body.h, body.ln_f = body.h[: SITE.layer + 1], torch.nn.Identity()

    @torch.no_grad()
    def run() -> None:
        for start in range(0, contexts.n, MICRO_BATCH):
            ids_cl = torch.from_numpy(contexts.ids(start, start + MICRO_BATCH)).to(device)
            body(input_ids=ids_cl, use_cache=False).last_hidden_state.sum().item()

    return run


def timed_s(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    ids_nl = np.random.default_rng(0).integers(1, VOCAB, (arguments.tokens // CONTEXT, CONTEXT))
    contexts = RandomContexts(ids_nl)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        subject = make_subject(root / "subject")
        bare = bare_pass(root / "subject", subject.device, contexts)

        def harvested(repetition: int, dtype: str) -> None:
            config = ActivationsConfig(dtype=dtype, micro_batch=MICRO_BATCH)
            path = root / f"{dtype}-{repetition}"
            with Draft.open(path, stage="activations", key="bench", identity="0" * 64, lineage={}) as draft:
                harvest(subject, contexts, {SITE: draft}, config)

        bare()
        results: dict[str, list[float]] = {"bare": [], "float16": [], "float32": []}
        for repetition in range(arguments.repetitions):
            results["bare"].append(timed_s(bare))
            for dtype in ("float16", "float32"):
                results[dtype].append(timed_s(lambda r=repetition, d=dtype: harvested(r, d)))
    rates = {what: contexts.n_rows / statistics.median(seconds) for what, seconds in results.items()}
    ratios = {
        dtype: statistics.median(b / s for b, s in zip(results["bare"], results[dtype], strict=True))
        for dtype in ("float16", "float32")
    }
    for what, rate in rates.items():
        print(f"{what:8s} {rate:10.0f} tokens/s  {ratios.get(what, 1.0):.2f} of bare")
    print(json.dumps({"threads": torch.get_num_threads(), "tokens_per_s": rates, "ratio_to_bare": ratios}))


if __name__ == "__main__":
    main()
