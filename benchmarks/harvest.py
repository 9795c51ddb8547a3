"""Harvest rate against the bare truncated forward pass of the same model on the same contexts, in turns.

The goal is a ratio of at least 0.9: hooks, masking, casting, moments, checksums and durable writes should cost next to
nothing. The bare pass runs the demo's model, cut after the site's block, and keeps nothing; several sites share one
pass, so they are held against the same. Each repetition times all of them, one right after the other, and ratios are
taken within it. Run `python benchmarks/harvest.py [--quick] [--folder DIR]`; writes results/harvest.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_pipeline.activations import harvest
from sae_pipeline.store import Draft, reuse_freed_memory
from sae_pipeline.study import ActivationsConfig, Site, SubjectConfig, resolve_site
from sae_pipeline.subjects import Subject, load_subject

CONTEXT, MICRO_BATCH, SHARD_TOKENS = 64, 64, 65_536  # the demo's
MODELS = ("code-medium", "code-large")
GOAL = 0.9


@dataclass
class RandomContexts:
    """Full contexts of random ids, in place of the tokens stage."""

    ids_nl: np.ndarray[Any, np.dtype[np.int64]]

    def __post_init__(self) -> None:
        self.n, self.context = self.ids_nl.shape
        self.n_rows = self.sized_by_rows = self.ids_nl.size
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


def bare_pass(subject: Subject, layer: int, contexts: RandomContexts) -> Callable[[], None]:
    """Run the same blocks with nothing around them: the model is cut after the site's block."""
    body = copy.deepcopy(subject._model).transformer
    body.h, body.ln_f = body.h[: layer + 1], torch.nn.Identity()

    @torch.no_grad()
    def run() -> None:
        for start in range(0, contexts.n, MICRO_BATCH):
            ids_cl = torch.from_numpy(contexts.ids(start, start + MICRO_BATCH)).to(subject.device)
            body(input_ids=ids_cl, use_cache=False)
        if subject.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def harvesting(
    subject: Subject, contexts: RandomContexts, sites: list[Site], dtype: str, folder: Path
) -> Callable[[], None]:
    """Harvest from nothing to the last commit."""
    config = ActivationsConfig(dtype=dtype, micro_batch=MICRO_BATCH, shard_tokens=SHARD_TOKENS)

    def run() -> None:
        drafts = {
            site: Draft.open(folder / str(site), stage="activations", key="bench", identity="0" * 64, lineage={})
            for site in sites
        }
        harvest(subject, contexts, drafts, config)
        for draft in drafts.values():
            draft.close()

    return run


def timed_s(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(model: str, n_tokens: int, repetitions: int, folder: Path) -> dict[str, Any]:
    """Seconds of every kind of work by repetition, and what follows from them."""
    subject = load_subject(SubjectConfig(alias="bench", id=f"embedded/{model}"), root=folder)
    post = resolve_site("bench.3of4.resid_post", subject.card.n_layers)
    ids_nl = np.random.default_rng(0).integers(1, subject.card.vocab_size, (n_tokens // CONTEXT, CONTEXT))
    contexts = RandomContexts(ids_nl)
    three = [Site("bench", post.layer, where) for where in ("attn_out", "mlp_out", "resid_post")]
    work = {
        "bare": bare_pass(subject, post.layer, contexts),
        "float16": harvesting(subject, contexts, [post], "float16", folder),
        "bfloat16": harvesting(subject, contexts, [post], "bfloat16", folder),
        "float32": harvesting(subject, contexts, [post], "float32", folder),
        "3 sites float16": harvesting(subject, contexts, three, "float16", folder),
    }
    work["bare"]()
    seconds: dict[str, list[float]] = {what: [] for what in work}
    for _ in range(repetitions):
        for what, run in work.items():
            seconds[what].append(timed_s(run))
            for path in folder.glob("bench.*"):
                shutil.rmtree(path)
    return {
        "model": model,
        "d": subject.card.d_model,
        "site": str(post),
        "tokens": n_tokens,
        "tokens_per_s": {what: contexts.n_rows / statistics.median(values) for what, values in seconds.items()},
        "ratio_to_bare": {
            what: spread([bare / mine for bare, mine in zip(seconds["bare"], values, strict=True)])
            for what, values in seconds.items()
            if what != "bare"
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the demo's model alone, on 131072 tokens")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=524_288, help="of each harvest (default 524288)")
    parser.add_argument("--folder", type=Path, help="where to write; default the folder for temporary files")
    options = parser.parse_args()
    reuse_freed_memory()  # as every asset does
    n_tokens = 131_072 if options.quick else options.tokens
    cases = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for model in ("code-medium",) if options.quick else MODELS:
            cases.append(measure(model, n_tokens, options.repetitions, Path(name)))
            for what, rate in cases[-1]["tokens_per_s"].items():
                ratio = cases[-1]["ratio_to_bare"].get(what, {"median": 1.0, "min": 1.0, "max": 1.0})
                figures = "{median:.2f} of bare ({min:.2f} to {max:.2f})".format(**ratio)
                print(f"{model:10s} {what:16s} {rate:10,.0f} tokens/s  {figures}")
    result = {
        "machine": platform.machine(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repetitions": options.repetitions,
        "goal": GOAL,
        "cases": cases,
    }
    if not options.quick:
        path = Path(__file__).with_name("results") / "harvest.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
