"""Tokens a second of the sparse training step against the dense autograd step, in turns, in one process.

Ratios within the run are what counts: each repetition times both on the same batches, one right after the other. Both
get one thread and are timed by the processor, which on a quiet machine is the clock. Run
`python benchmarks/training_step.py [--quick]`; prints a table, writes results/training_step.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from sae_pipeline.kernels import Objective, Optimiser, Parameters, TopK, TrainState, cpu, fast_float32_matmul, reference

CASES = [  # d, n, k, batch
    *((128, n, k, 1024) for n in (256, 512, 1024, 2048, 4096) for k in (4, 8, 16)),
    (256, 4096, 32, 2048),
    (768, 16384, 32, 2048),
]
DEMO_TOKENS = 2_000_000
STEPS = 3  # of each kind in each repetition


def activations(rows: int, d: int) -> torch.Tensor:
    """Unit rows with a spectrum that falls off, sparse combinations of many directions, and noise."""
    g = torch.Generator().manual_seed(10_000)
    directions = normalize(torch.randn(4 * d, d, generator=g), dim=1)
    frequency = torch.arange(1, 4 * d + 1).float() ** -0.9
    chosen = torch.multinomial(frequency.expand(rows, -1), 12, generator=g)
    sparse = (torch.rand(rows, 12, 1, generator=g) * directions[chosen]).sum(1)
    low_rank = torch.randn(rows, d // 6, generator=g) @ torch.randn(d // 6, d, generator=g) / d
    return normalize(sparse + low_rank + 0.03 * torch.randn(rows, d, generator=g), dim=1)


def start(x_md: torch.Tensor, n: int) -> TrainState:
    """Tied directions, b_pre at the mean."""
    W_dec = normalize(torch.randn(n, x_md.shape[1], generator=torch.Generator().manual_seed(1)), dim=1)
    return TrainState.start(Parameters(0.5 * W_dec, torch.zeros(n), W_dec, x_md.mean(0)), average=True)


def rates(case: tuple[int, int, int, int], repetitions: int) -> dict[str, list[float]]:
    """Tokens per second of processor time of both steps, by repetition."""
    d, n, k, batch = case
    x_md = activations(8 * batch, d)
    variance = float((x_md - x_md.mean(0)).square().sum(1).mean())
    objective = Objective(TopK(k), 1 / variance, auxk_k=d // 2, auxk_alpha=1 / 32, dead_after_tokens=100_000)
    optimiser = Optimiser((0.9, 0.999), 6.25e-10, ema=0.999, grad_clip=None)
    kinds: dict[str, tuple[Callable[..., Any], TrainState]] = {
        "dense": (reference.step, start(x_md, n)),
        "sparse": (cpu.step, start(x_md, n)),
    }
    found: dict[str, list[float]] = {"dense": [], "sparse": []}
    for repetition in range(repetitions + 1):
        for kind, (step, state) in kinds.items():
            started = time.process_time()
            for t in range(STEPS):
                x_bd = x_md[(repetition * STEPS + t) % 8 * batch :][:batch]
                with torch.no_grad():
                    step(state, x_bd, objective, optimiser, lr=1e-3, l1=0.0)
            if repetition:  # the first is warm-up
                found[kind].append(STEPS * batch / (time.process_time() - started))
    return found


def summary(case: tuple[int, int, int, int], found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratio of each repetition's pair."""
    ratios = [sparse / dense for sparse, dense in zip(found["sparse"], found["dense"], strict=True)]
    median = {kind: statistics.median(values) for kind, values in found.items()}
    return {
        **dict(zip(("d", "n", "k", "batch"), case, strict=True)),
        **{f"{kind}_tokens_per_s": round(value) for kind, value in median.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "demo_cpu_s": round(DEMO_TOKENS / median["sparse"], 1),
    }


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition, small cases only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    results = []
    print(
        f"{'d':>4} {'n':>6} {'k':>3} {'dense tok/s':>12} {'sparse tok/s':>13} {'ratio':>6} {'min..max':>13}  2M: cpu s"
    )
    with fast_float32_matmul() as precision:
        for case in CASES[:3] if quick else CASES:
            row = summary(case, rates(case, 1 if quick else 5))
            results.append(row)
            spread = f"{row['ratio_min']}..{row['ratio_max']}"
            print(
                f"{row['d']:4} {row['n']:6} {row['k']:3} {row['dense_tokens_per_s']:12,} "
                f"{row['sparse_tokens_per_s']:13,} {row['ratio']:6.2f} {spread:>13}  {row['demo_cpu_s']:9.1f}",
                flush=True,
            )
    machine = {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": 1,
        "matmul_precision": precision,
    }
    if not quick:
        path = Path(__file__).parent / "results" / "training_step.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": machine, "cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
