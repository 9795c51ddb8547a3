"""What a sweep saves: twelve autoencoders trained together against each alone; and how a step grows with n.

The trainer itself, on a published dataset of d = 256: twelve TopK autoencoders of n ≤ 4096 together, on one
read of the rows, then the same twelve, one run each. The goal is a ratio of wall times of at most 0.6, and that every
member equals its own solo run bit for bit. Then one step at d = 768 for n from 2^12 to 2^15, which should cost a + b n
within 15 %. Run `python benchmarks/sweep.py [--quick] [--folder DIR]`; writes results/sweep.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from activation_feed import Case, publish

from sae_pipeline.dataset import Dataset
from sae_pipeline.kernels import Objective, Optimiser, Parameters, TopK, TrainState, fast_float32_matmul, train_step
from sae_pipeline.store import Draft, reuse_freed_memory
from sae_pipeline.study import AutoencoderSpec
from sae_pipeline.training import Member, train

GOAL, FIT_GOAL = 0.6, 0.15
D_SWEEP, D_STEP, BATCH, K_STEP = 256, 768, 1024, 32


def specs(steps: int) -> tuple[AutoencoderSpec, ...]:
    """Four sizes by three k."""
    shared = {"recipe": "topk", "batch": BATCH, "tokens": steps * BATCH, "warmup_steps": 5, "ema": 0.99, "lr": 2e-3}
    care = {"auxk_k": D_SWEEP // 2, "auxk_alpha": 1 / 32, "dead_after_tokens": 100_000}
    return tuple(
        AutoencoderSpec(key=f"topk-n{n}-k{k}", n=n, k=k, **shared, **care)
        for n in (512, 1024, 2048, 4096)
        for k in (8, 16, 32)
    )


def timed(folder: Path, chosen: Iterable[AutoencoderSpec], dataset: Dataset) -> tuple[float, dict[str, str]]:
    """Wall seconds of training them together, and the sha256 of what each became."""
    folder.mkdir()
    drafts = {
        spec.key: Draft.open(folder / spec.key, stage="autoencoder", key=spec.key, identity="c" * 64, lineage={})
        for spec in chosen
    }
    members = {spec.key: Member(spec, drafts[spec.key]) for spec in chosen}
    started_s = time.perf_counter()
    train(members, dataset)
    wall_s = time.perf_counter() - started_s
    digests = {}
    for key, draft in drafts.items():
        digests[key] = hashlib.sha256((draft.path / "autoencoder.safetensors").read_bytes()).hexdigest()
        draft.close()
    return wall_s, digests


def sweep(folder: Path, steps: int, repetitions: int) -> dict[str, Any]:
    """Together and alone, in turns."""
    chosen, ratios, together, alone = specs(steps), [], [], []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        dataset = publish(Path(place), Case("sweep", D_SWEEP, 65_536, chosen, steps))
        for i in range(repetitions):
            wall_s, digests = timed(Path(place) / f"all{i}", chosen, dataset)
            solo = [timed(Path(place) / f"{spec.key}-{i}", [spec], dataset) for spec in chosen]
            together.append(wall_s)
            alone.append(sum(seconds for seconds, _ in solo))
            ratios.append(wall_s / alone[-1])
            if digests != {key: digest for _, found in solo for key, digest in found.items()}:
                raise SystemExit("a member of the sweep differs from its own solo run")
    return {
        "d": D_SWEEP, "autoencoders": [spec.key for spec in chosen], "steps": steps, "goal": GOAL,
        "together_s": together, "alone_s": alone, "ratios": ratios, "ratio": statistics.median(ratios), "equal": True,
    }  # fmt: skip


def step_ms(n: int, repetitions: int) -> float:
    """The fastest of some steps at d = 768, one thread, in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(n, D_STEP, generator=generator))
    state = TrainState.start(Parameters(W_dec.clone(), torch.zeros(n), W_dec, torch.zeros(D_STEP)), average=False)
    objective = Objective(TopK(K_STEP), 1.0 / D_STEP, 0, 0.0, 10**9)
    optimiser, found = Optimiser((0.9, 0.999), 1e-8, None, None), []
    for _ in range(repetitions + 1):
        x_bd = torch.randn(BATCH, D_STEP, generator=generator)
        started_s = time.perf_counter()
        train_step(state, x_bd, objective, optimiser, lr=1e-4)
        found.append(1e3 * (time.perf_counter() - started_s))
    return min(found[1:])


def growth(repetitions: int) -> dict[str, Any]:
    """Step time over n with the line that minimises its relative errors."""
    sizes = [1 << bits for bits in (12, 13, 14, 15)]
    torch.set_num_threads(1)
    with fast_float32_matmul():
        times = np.array([step_ms(n, repetitions) for n in sizes])
    design = np.stack([np.ones(len(sizes)), np.array(sizes)], axis=1) / times[:, None]
    (a, b), *_ = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)
    errors = (a + b * np.array(sizes)) / times - 1
    return {
        "d": D_STEP, "k": K_STEP, "batch": BATCH, "n": sizes, "step_ms": times.round(2).tolist(),
        "a_ms": round(float(a), 3), "b_us": round(1e3 * float(b), 4),
        "largest_error": round(float(np.abs(errors).max()), 4), "goal": FIT_GOAL,
    }  # fmt: skip


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, once: whether it works, not what it reaches")
    parser.add_argument("--folder", type=Path, help="where to put the data; default the system's temporary folder")
    options = parser.parse_args()
    reuse_freed_memory(map_large=True)  # as the asset of the autoencoders does
    found = sweep(options.folder, 30 if options.quick else 300, 1 if options.quick else 3)
    print(f"twelve together / twelve alone {found['ratio']:.2f} ({found['ratios']}), goal {GOAL}; equal bit for bit")
    threads = torch.get_num_threads()
    line = growth(2 if options.quick else 8)
    print(
        f"step at d = 768: {line['step_ms']} ms for n = {line['n']}; {line['a_ms']} ms + {line['b_us']} us n, "
        f"largest error {line['largest_error']:.1%}, goal {FIT_GOAL:.0%}"
    )
    machine = {"machine": platform.machine(), "threads": threads, "torch": torch.__version__}
    if not options.quick:
        path = Path(__file__).parent / "results" / "sweep.json"
        path.write_text(json.dumps({**machine, "sweep": found, "step": line}, indent=2) + "\n")


if __name__ == "__main__":
    main()
