"""Metrics against the plain way to the same numbers, in turns, in one process.

    ablation         32 latents of a position: a full forward pass for each, against one batch behind a prefix run once
    progressive      the error of every code of 1 to 4k latents: one decoding for each, against one pass over the code
    monosemanticity  the score of every latent: a loop over pairs of items, against one sparse product

Ratios within the run are what counts: each repetition times both, one right after the other, on one thread and by the
processor. Beside the ratio of an ablation stand the one that its multiplications allow (`limit_by_flops`) and the parts
of our time. Run `python benchmarks/evaluation.py [--quick]`; prints a table, writes results/evaluation.json (`--quick`
prints only). The subjects are random GPT-2s and a shipped model, so nothing has to be there before.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn.functional import normalize
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig, Codes
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import monosemanticity_scores
from sae_pipeline.evaluation.ablation_effects import Effects, Position
from sae_pipeline.evaluation.progressive import prefix_errors
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import reuse_freed_memory
from sae_pipeline.study import Site, SubjectConfig
from sae_pipeline.subjects import Subject, SubjectCard, load_subject

WINDOW = 16


@dataclass(frozen=True)
class Case:
    """One comparison: what is compared, at which size, the ratio aimed at, and repetitions (plain, ours) to time.

    `repeat` makes, for one repetition, the two ways to one array of numbers. Where ours is timed in parts, `parts_s`
    gains the seconds of each part whenever it runs; `limit_by_flops` is the ratio of both ways' operations, if counted.
    """

    name: str
    size: str
    goal: float
    repeat: Callable[[int], tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]
    limit_by_flops: float | None = None
    parts_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def random_subject(d: int, layers: int, vocabulary: int, context: int) -> Subject:
    torch.manual_seed(0)
    shape = {"n_embd": d, "n_layer": layers, "n_head": d // 64, "n_positions": context, "vocab_size": vocabulary}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(f"{folder}/tokenizer.json")
        return load_subject(SubjectConfig(alias="random", id=folder, device="cpu"), root=Path(folder))


def random_autoencoder(d: int, n: int, k: int) -> Autoencoder:
    W_dec = normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(1)), dim=1)
    parameters = Parameters(0.5 * W_dec, torch.zeros(n), W_dec, torch.zeros(d))
    return Autoencoder(AutoencoderConfig("topk", n, d, k), parameters, Normaliser("paper", d))


class TimedPosition(Position):
    """Knows what its passes through the blocks and the unembedding have taken."""

    passes_s = 0.0

    def logits(self, x_md: Tensor) -> Tensor:
        """Logits [m, T, V] with each of `x_md` in turn as the activation at t."""
        started = time.process_time()
        logits_mtv = super().logits(x_md)
        self.passes_s += time.process_time() - started
        return logits_mtv


def pass_flops(card: SubjectCard, layers: int, positions: int, before: float, logits: int) -> float:
    """Of a GPT-2's matrix products where so many positions go through so many blocks, and some on to their logits.

    24 d² a position and block, 2 d V a position with logits, and in attention 4 d for each position that one reads: the
    `before` that were run earlier, and of its own pass half on average.
    """
    read = before + (positions + 1) / 2
    in_blocks = positions * layers * (24 * card.d_model**2 + 4 * card.d_model * read)
    return in_blocks + logits * 2 * card.d_model * card.vocab_size


def ablation_limit(card: SubjectCard, layers_behind: int, context: int, changes: int) -> float:
    """The ratio if both ways did nothing but matrix products, at one rate; for a position in the middle of those drawn.

    Both run the base beside the changes. A full pass gives the logits of all positions, as `Subject.logits` does; that
    over the prefix ends with the queries, keys and values of the last block.
    """
    before = (context - WINDOW) // 2
    plain = (1 + changes) * pass_flops(card, card.n_layers, context, 0, context)
    prefix = pass_flops(card, layers_behind - 1, before, 0, 0) + before * 6 * card.d_model**2
    return plain / (prefix + (1 + changes) * pass_flops(card, layers_behind, WINDOW, before, WINDOW))


def ablation_case(subject: Subject, name: str, context: int, k: int) -> Case:
    """At the end of a block three quarters up, where the paper's sites lie."""
    card, parts_s = subject.card, defaultdict[str, list[float]](list)
    layers, vocabulary = card.n_layers, card.vocab_size
    sae = random_autoencoder(card.d_model, 4 * card.d_model, k)
    site = Site("random", 3 * layers // 4 - 1, "resid_post")

    def repeat(seed: int) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
        generator = torch.Generator().manual_seed(seed)
        ids_l = torch.randint(0, vocabulary, (context,), generator=generator)
        t = int(torch.randint(0, context - WINDOW + 1, (1,), generator=generator))
        value_ld = subject.run(ids_l[None], [site])[site][0]
        u_1d, scale = sae.normaliser.normalise(value_ld[t : t + 1])
        codes = sae.encode(u_1d)
        change_kd = -scale.norm * codes.values[0, :, None] * sae.W_dec[codes.indices[0]]

        def logits_of(x_d: Tensor) -> Tensor:
            def put(x_cld: Tensor) -> Tensor:
                changed_cld = x_cld.clone()
                changed_cld[0, t] = x_d
                return changed_cld

            with subject.editing(site, put):
                return subject.logits(ids_l[None])[:, t : t + WINDOW]

        def plain() -> np.ndarray:
            base_tv = logits_of(value_ld[t])[0]
            return columns(Effects.join([Effects.of(logits_of(value_ld[t] + c_d), base_tv) for c_d in change_kd]))

        def ours() -> np.ndarray:
            started = time.process_time()
            position = TimedPosition(subject, site, value_ld[: t + WINDOW], ids_l[: t + WINDOW], t)
            behind_prefix = time.process_time()
            found = columns(position.effects(value_ld[t], change_kd))
            parts_s["prefix"].append(behind_prefix - started)
            parts_s["blocks_and_unembedding"].append(position.passes_s)
            parts_s["statistics"].append(time.process_time() - behind_prefix - position.passes_s)
            return found

        return plain, ours

    size = f"{name} d={card.d_model} layers={layers} V={vocabulary} S={context} T={WINDOW} k={k}"
    limit = ablation_limit(card, layers - site.layer - 1, context, k)
    return Case("ablation", size, 20.0, repeat, limit, parts_s)


def columns(effects: Effects) -> np.ndarray:
    found = (effects.first_m, effects.window_m, effects.share_mt[:, 0], effects.positions_m, effects.vocabulary_m)
    return torch.stack(found).numpy()


def progressive_case(d: int, n: int, k: int, rows: int) -> Case:
    sae = random_autoencoder(d, n, k)

    def repeat(seed: int) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
        u_rd = normalize(torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), dim=1)
        values, indices = sae.codes_top(u_rd, 4 * k)

        def error(length: int) -> Tensor:
            decoded_rd = sae.decode(Codes(indices[:, :length], values[:, :length]))
            return (u_rd.double() - decoded_rd.double()).square().sum(1)

        def plain() -> np.ndarray:
            return torch.stack([error(length) for length in range(1, 4 * k + 1)], dim=1).numpy()

        def ours() -> np.ndarray:
            return prefix_errors(sae, u_rd, indices, values)[:, 1:].numpy()

        return plain, ours

    return Case("progressive", f"d={d} n={n} k'=1..{4 * k} rows={rows}", 10.0, repeat)


def monosemanticity_case(items: int, n: int, k: int, e: int) -> Case:
    sae = random_autoencoder(e, n, k)

    def repeat(seed: int) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
        generator = torch.Generator().manual_seed(seed)
        codes = sae.encode(normalize(torch.randn(items, e, generator=generator), dim=1))
        # of another model; they share a direction, as embeddings do
        embedding_me = torch.randn(items, e, generator=generator, dtype=torch.float64) + 0.5

        def plain() -> np.ndarray:
            z_mn, unit_me = codes.dense(n).double(), normalize(embedding_me, dim=1)
            z_mn = (z_mn - z_mn.amin(0)) / (z_mn.amax(0) - z_mn.amin(0))
            similar_n, weight_n = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
            for i in range(1, items):
                similar_n += z_mn[i] * ((unit_me[:i] @ unit_me[i]) @ z_mn[:i])
                weight_n += z_mn[i] * z_mn[:i].sum(0)
            return known(torch.where(weight_n > 0, similar_n / weight_n, torch.nan).numpy())

        def ours() -> np.ndarray:
            return known(monosemanticity_scores(codes, embedding_me, n))

        return plain, ours

    return Case("monosemanticity", f"items={items} n={n} k={k} e={e}", 50.0, repeat)


def known(score_n: np.ndarray) -> np.ndarray:
    """Latents that fire on fewer than two items have no score, by either way: there they are equal."""
    return np.where(np.isnan(score_n), -9.0, score_n)


def cases(quick: bool) -> Iterator[Case]:
    """Made one after the other, so that one model at a time is in memory."""
    if quick:
        yield ablation_case(random_subject(128, 4, 4096, 64), "random", 64, 8)
        yield progressive_case(128, 2048, 8, 512)
        yield monosemanticity_case(300, 1024, 16, 64)
        return
    for context in (128, 512):
        yield ablation_case(random_subject(384, 8, 16384, context), "random", context, 32)
    shipped = load_subject(SubjectConfig(alias="code", id="embedded/code-large", device="cpu"), root=Path())
    yield ablation_case(shipped, "code-large", shipped.card.max_positions, 32)
    yield progressive_case(768, 16384, 32, 1024)
    for items in (1000, 2000):
        yield monosemanticity_case(items, 4096, 32, 384)


def measure(case: Case, repetitions: int) -> dict[str, Any]:
    """Seconds of both ways, the ratio of each repetition's pair, and the largest relative difference of the numbers.

    Of what was counted or timed in parts also the limit, and the parts of our time: medians, as all seconds are.
    """
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    difference = 0.0
    for repetition in range(repetitions + 1):
        found = {}
        for name, way in zip(seconds, case.repeat(repetition), strict=True):
            started = time.process_time()
            found[name] = way()
            if repetition:  # the first is warm-up
                seconds[name].append(time.process_time() - started)
        difference = max(difference, float(np.max(np.abs(found["ours"] / found["plain"] - 1))))
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)]
    row = {
        "metric": case.name,
        "size": case.size,
        **{f"{name}_s": round(statistics.median(values), 4) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 1),
        "ratio_min": round(min(ratios), 1),
        "ratio_max": round(max(ratios), 1),
        "goal": case.goal,
        "largest_relative_difference": float(f"{difference:.2g}"),
    }
    if case.limit_by_flops is not None:
        row["limit_by_flops"] = round(case.limit_by_flops, 1)
    if case.parts_s:
        row["ours_parts_s"] = {part: round(statistics.median(s[-repetitions:]), 4) for part, s in case.parts_s.items()}
    return row


def line(row: dict[str, Any]) -> str:
    """Of the table, and below it the parts of our time where they are known."""
    spread, limit = f"{row['ratio_min']}..{row['ratio_max']}", row.get("limit_by_flops", "")
    shown = (
        f"{row['metric']:16}{row['plain_s']:9.3f}{row['ours_s']:9.4f}{row['ratio']:7.1f}{spread:>14}"
        f"{row['goal']:6.0f}{limit:>7}{row['largest_relative_difference']:12.1e}  {row['size']}"
    )
    parts = ", ".join(f"{part.replace('_', ' ')} {s:.4f} s" for part, s in row.get("ours_parts_s", {}).items())
    return f"{shown}\n{'':16}of ours: {parts}" if parts else shown


def main() -> None:
    """Measure every case, print a line for each, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition at small sizes; nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    reuse_freed_memory()  # as every asset does
    logging.disable_progress_bar()
    heads = f"{'plain s':>9}{'ours s':>9}{'ratio':>7}{'min..max':>14}{'goal':>6}{'limit':>7}{'difference':>12}"
    print(f"{'metric':16}{heads}  size")
    rows = []
    for case in cases(quick):
        row = measure(case, 1 if quick else 5)
        rows.append(row)
        print(line(row), flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": 1,
    }
    if not quick:
        path = Path(__file__).parent / "results" / "evaluation.json"
        path.write_text(json.dumps({"machine": machine, "metrics": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
