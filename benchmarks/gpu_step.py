"""Tokens a second of the TopK step on a GPU, beside what its matrix units alone would allow, and a prediction on paper.

The roofline of a case is the rate at which the GPU's measured bfloat16 product would make the scores and nothing else.
Run `python benchmarks/gpu_step.py`; prints a table, writes results/gpu_step.json. Without a GPU it says so, prints the
predictions and writes nothing. The ceilings of another GPU can be given as arguments.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import embedding_bag, normalize

from sae_pipeline.kernels import Objective, Optimiser, Parameters, TopK, TrainState, cuda, train_step


class Case(NamedTuple):
    """One size; `auxk_k` slots a token are there for dead latents, of which there are none."""

    d: int
    n: int
    k: int
    batch: int
    auxk_k: int


class Ceilings(NamedTuple):
    """Of one GPU: dense bfloat16 products, copies in memory, reads from the last cache and its size (an H200's)."""

    bf16_flop_s: float = 788e12
    copy_bytes_s: float = 4.3e12
    cache_bytes_s: float = 5.5e12
    cache_bytes: float = 50e6


CASES = [Case(768, 32768, 32, 16384, 384), Case(768, 131072, 32, 16384, 384), Case(4096, 131072, 32, 16384, 448)]
GOALS = (0.55, 0.65, 0.70)  # of the roofline
MARGIN = 32  # candidates beyond k that are scored again
WARM_UP, REPETITIONS, STEPS = 3, 7, 5


def predict(case: Case, ceilings: Ceilings) -> dict[str, float]:
    """Nanoseconds a token of each part at the ceilings, one after the other, and the rates that follow.

    An upper bound: it gives the selection the full rate of the product it is part of, every access the full bandwidth,
    and launches no time. Sparse rows are float32; those of a matrix that does not fit in the cache come from memory.
    """
    d, n, k, batch, auxk_k = case
    weight_bytes_s = ceilings.cache_bytes_s if 4 * n * d <= ceilings.cache_bytes else ceilings.copy_bytes_s
    row_bytes = 4 * d
    parts = {
        "product": 2 * d * n / ceilings.bf16_flop_s,
        "scores_again": (k + MARGIN) * row_bytes / weight_bytes_s,
        "decode": k * row_bytes / weight_bytes_s,
        "gradients": 2 * k * row_bytes / ceilings.cache_bytes_s,
        "update": (2 * 24 + 6) * n * d / ceilings.copy_bytes_s / batch,  # both: weight, two moments; a bfloat16 copy
        "pairs": 48 * (k + auxk_k) / ceilings.copy_bytes_s,  # a radix sort's passes over keys and places
        "token_rows": 10 * row_bytes / ceilings.copy_bytes_s,  # x, its copies, errors of both terms
    }
    seconds = sum(parts.values())
    rates = {"tokens_per_s": 1 / seconds, "of_roofline": parts["product"] / seconds}
    return {f"{name}_ns": 1e9 * value for name, value in parts.items()} | rates


def start(case: Case, device: torch.device) -> tuple[torch.Tensor, TrainState]:
    """A batch of sparse combinations of the decoder's own rows with noise, and a state that can encode it."""
    g = torch.Generator(device).manual_seed(1)
    W_dec = normalize(torch.randn(case.n, case.d, generator=g, device=device), dim=1)
    frequency = torch.arange(1, case.n + 1, device=device, dtype=torch.float32) ** -0.7  # few are frequent
    chosen = torch.multinomial(frequency, case.batch * case.k, replacement=True, generator=g).view(case.batch, case.k)
    strength = torch.rand(chosen.shape, generator=g, device=device)
    x_bd = embedding_bag(chosen, W_dec, per_sample_weights=strength, mode="sum")
    x_bd += 0.01 * torch.randn(x_bd.shape, generator=g, device=device)
    params = Parameters(W_dec.clone(), torch.zeros(case.n, device=device), W_dec, x_bd.mean(0))
    return x_bd, TrainState.start(params, average=False)


def seconds(work: Callable[[], object]) -> float:
    """Median time of a call on the device, warm-up left out, STEPS calls a repetition."""
    for _ in range(WARM_UP):
        work()
    found = []
    for _ in range(REPETITIONS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(STEPS):
            work()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / 1e3 / STEPS)
    return statistics.median(found)


def product_flop_s(device: torch.device, size: int = 8192) -> float:
    """Rate of a large bfloat16 product of random numbers (zeros would run faster)."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: torch.mm(a, b))


def measure(case: Case, device: torch.device, flop_s: float) -> dict[str, Any]:
    """Tokens a second of the step, its share of the roofline, and the memory it took at most."""
    x_bd, state = start(case, device)
    variance = float((x_bd - x_bd.mean(0)).square().sum(1).mean())
    objective = Objective(TopK(case.k), 1 / variance, case.auxk_k, auxk_alpha=1 / 32, dead_after_tokens=10**9)
    optimiser = Optimiser((0.9, 0.999), 6.25e-10, ema=None, grad_clip=None)
    torch.cuda.reset_peak_memory_stats()
    tokens_per_s = case.batch / seconds(lambda: train_step(state, x_bd, objective, optimiser, lr=1e-4))
    of_roofline = tokens_per_s * 2 * case.d * case.n / flop_s
    return {"tokens_per_s": tokens_per_s, "of_roofline": of_roofline, "peak_bytes": torch.cuda.max_memory_allocated()}


def table(rows: list[dict[str, Any]], measured: bool) -> None:
    """One line a case."""
    print(f"{'d':>5} {'n':>7} {'k':>3} {'batch':>6} {'predicted tok/s':>16} {'of roofline':>12} {'goal':>5}", end="")
    print(f" {'measured tok/s':>15} {'of roofline':>12}" if measured else "")
    for row in rows:
        print(f"{row['d']:5} {row['n']:7} {row['k']:3} {row['batch']:6} ", end="")
        print(
            f"{row['predicted']['tokens_per_s']:16,.0f} {row['predicted']['of_roofline']:12.2f} {row['goal']:5}", end=""
        )
        print(f" {row['tokens_per_s']:15,.0f} {row['of_roofline']:12.2f}" if measured else "")


def main() -> None:
    """Predict, and where there is a GPU measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in Ceilings()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    ceilings = Ceilings(**vars(parser.parse_args()))
    rows: list[dict[str, Any]] = [
        {**case._asdict(), "goal": goal, "predicted": predict(case, ceilings)}
        for case, goal in zip(CASES, GOALS, strict=True)
    ]
    if not torch.cuda.is_available() or not cuda.has_triton():
        print("There is no GPU here, or no Triton: predictions on paper, nothing is written.")
        table(rows, measured=False)
        return
    device = torch.device("cuda")
    flop_s = product_flop_s(device)
    for row, case in zip(rows, CASES, strict=True):
        row |= measure(case, device, flop_s)
    table(rows, measured=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "bf16_flop_s": flop_s}
    path = Path(__file__).parent / "results" / "gpu_step.json"
    path.write_text(json.dumps({"machine": machine, "ceilings": ceilings._asdict(), "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
