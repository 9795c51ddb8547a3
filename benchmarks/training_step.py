"""Tokens a second of the sparse training step, beside the dense autograd step and the bare encoder product.

Everything takes its turn in one process on the same batches, and what counts are ratios within one turn: of the sparse
step to the dense one, and to a step that would consist of nothing but its one dense product, in bfloat16 and in
float32. Each size runs on one thread, timed by the processor, which on a quiet machine is the clock; the large ones
also on all threads, timed by the clock. Beside the rates: what one latent in a hundred being dead costs, how many
entries of the support the screen alone would have got wrong, and how long the parts of the step take.

Run `python benchmarks/training_step.py [--quick] [--turns N]`; prints a table, writes results/training_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, normalize

from sae_pipeline.kernels import (
    Objective,
    Optimiser,
    Parameters,
    TopK,
    TrainState,
    compiled,
    cpu,
    fast_float32_matmul,
    reference,
    screening,
    ways,
)
from sae_pipeline.store import reuse_freed_memory

DEMO = [(256, n, k, 1024) for n in (256, 512, 1024, 2048, 4096) for k in (4, 8, 16)]  # d, n, k, batch
LARGE = [(256, 4096, 32, 2048), (768, 16384, 32, 2048), (768, 32768, 64, 2048)]
QUICK = [DEMO[0], DEMO[7]]
PROFILED = LARGE[:2]
PARTS = {
    "rounding": (screening, "round_rows"),
    "scores": (screening, "scores"),
    "candidates": (screening, "candidates"),
    "exact scores": (screening, "sampled_product"),
    "the k best": (screening, "largest"),
    "decoding": (cpu, "decode"),
    "gradient at the latents": (cpu, "sampled_product"),
    "grouping": (cpu, "grouped"),
    "gradient of the weights": (cpu, "_row_gradient"),
    "update": (cpu, "update_rows"),
}  # none of which calls another
BATCHES = 4
DEAD_SHARE = 0.01
NEVER = 10**12  # tokens
TURN_S = 0.5  # what a kind does in one turn takes about this long, or is one step


class Size(NamedTuple):
    """Dimensions of a step."""

    d: int
    n: int
    k: int
    batch: int


def activations(rows: int, d: int) -> torch.Tensor:
    """Unit rows with a spectrum that falls off, sparse combinations of many directions, and noise."""
    g = torch.Generator().manual_seed(10_000)
    directions = normalize(torch.randn(4 * d, d, generator=g), dim=1)
    frequency = torch.arange(1, 4 * d + 1).float() ** -0.9
    chosen = torch.multinomial(frequency.expand(rows, -1), 12, generator=g)
    sparse = (torch.rand(rows, 12, 1, generator=g) * directions[chosen]).sum(1)
    low_rank = torch.randn(rows, d // 6, generator=g) @ torch.randn(d // 6, d, generator=g) / d
    return normalize(sparse + low_rank + 0.03 * torch.randn(rows, d, generator=g), dim=1)


def start(x_md: torch.Tensor, n: int, dead_share: float = 0.0) -> TrainState:
    """Tied directions, b_pre at the mean; the dead have not fired for long and will not."""
    W_dec = normalize(torch.randn(n, x_md.shape[1], generator=torch.Generator().manual_seed(1)), dim=1)
    state = TrainState.start(Parameters(0.5 * W_dec, torch.zeros(n), W_dec, x_md.mean(0)), average=True)
    dead = round(dead_share * n)
    state.params.b_enc[:dead] = -1e3
    state.fired.tokens_since_fired[:dead] = NEVER
    return state


@contextmanager
def not_compiled() -> Iterator[None]:
    """Selection in PyTorch alone, as on a machine without a C compiler."""
    library = compiled.library
    compiled.library = lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        compiled.library = library


def kinds(size: Size, x_md: torch.Tensor) -> tuple[dict[str, Callable[[torch.Tensor], Any]], TrainState]:
    """What takes turns, by name, each a function of a batch; and the state of the sparse step."""
    variance = float((x_md - x_md.mean(0)).square().sum(1).mean())
    objective = Objective(TopK(size.k), 1 / variance, size.d // 2, auxk_alpha=1 / 32, dead_after_tokens=NEVER)
    optimiser = Optimiser((0.9, 0.999), 6.25e-10, ema=0.999, grad_clip=None)
    plain, sparse, stock, some_dead = (start(x_md, size.n, share) for share in (0.0, 0.0, 0.0, DEAD_SHARE))

    def stepping(step: Callable[..., Any], state: TrainState) -> Callable[[torch.Tensor], Any]:
        return lambda x_bd: step(state, x_bd, objective, optimiser, lr=1e-4, l1=0.0)

    def in_pytorch(x_bd: torch.Tensor) -> None:
        with not_compiled():
            stepping(cpu.step, stock)(x_bd)

    found = {"dense": stepping(reference.step, plain), "sparse": stepping(cpu.step, sparse)}
    if compiled.library() is not None:
        found["sparse_in_pytorch"] = in_pytorch
    found["sparse_some_dead"] = stepping(cpu.step, some_dead)
    for dtype in (torch.float32, torch.bfloat16):
        found[f"{dtype}_product".removeprefix("torch.")] = product(plain.params.W_enc.to(dtype))
    return found, sparse


def product(W_nd: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """The encoder's product in chunks of rows, into memory that is there already."""
    scores = torch.empty(
        max(1, screening.SCORE_BYTES // (W_nd.element_size() * len(W_nd))), len(W_nd), dtype=W_nd.dtype
    )

    def run(x_bd: torch.Tensor) -> None:
        rows_bd = x_bd.to(W_nd.dtype)
        for rows in screening.chunks_of_rows(rows_bd, len(W_nd)):
            torch.mm(rows_bd[rows], W_nd.t(), out=scores[: len(rows_bd[rows])])

    return run


def rates(size: Size, threads: int, turns: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens a second by kind and turn; and how the support of the last state was found."""
    clock = time.process_time if threads == 1 else time.perf_counter
    x_md = activations(BATCHES * size.batch, size.d)
    each, state = kinds(size, x_md)
    batches = x_md.split(size.batch)
    steps = dict.fromkeys(each, 1)
    found: dict[str, list[float]] = {kind: [] for kind in each}
    for turn in range(turns + 1):
        for kind, run in each.items():
            started = clock()
            for t in range(steps[kind]):
                run(batches[t % BATCHES])
            spent_s = clock() - started
            if turn:  # the first is warm-up, and tells how many steps a turn takes
                found[kind].append(steps[kind] * size.batch / spent_s)
            else:
                steps[kind] = max(1, min(20, round(TURN_S / spent_s)))
    return found, agreement(size, state.params, batches[0] - state.params.b_pre)


@contextmanager
def timed(spent_s: dict[str, list[float]]) -> Iterator[None]:
    """Note how long each call of each part takes, on whatever thread."""
    plain = {part: getattr(module, name) for part, (module, name) in PARTS.items()}

    def noting(part: str) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = plain[part](*given, **named)
            spent_s[part].append(time.perf_counter() - started)
            return result

        return run

    for part, (module, name) in PARTS.items():
        setattr(module, name, noting(part))
    try:
        yield
    finally:
        for part, (module, name) in PARTS.items():
            setattr(module, name, plain[part])


def profile(size: Size, threads: int, steps: int) -> dict[str, Any]:
    """Milliseconds by part of the step of median length, as means over threads; the rest is all else and waiting."""
    x_md = activations(BATCHES * size.batch, size.d)
    run, batches = kinds(size, x_md)[0]["sparse"], x_md.split(size.batch)
    found: list[dict[str, float]] = []
    for t in range(steps + 1):
        spent_s: dict[str, list[float]] = {part: [] for part in PARTS}
        started = time.perf_counter()
        with timed(spent_s):
            run(batches[t % BATCHES])
        step_s = time.perf_counter() - started
        parts_s = {part: sum(calls_s) / threads for part, calls_s in spent_s.items()}
        found.append({"step": step_s, **parts_s, "rest": step_s - sum(parts_s.values())})
    median = sorted(found[1:], key=lambda each: each["step"])[steps // 2]
    return {**size._asdict(), "threads": threads, "ms": {part: round(1e3 * spent, 2) for part, spent in median.items()}}


def agreement(size: Size, params: Parameters, xc_bd: torch.Tensor) -> dict[str, float]:
    """Shares of the entries of float32's support that the step chooses, and that the screen alone would; candidates."""
    support = screening.topk_support(params, xc_bd, size.k)
    found = screening.screened(params, xc_bd, size.k, torch.bfloat16)
    assert support is not None and found is not None
    W_nd, b_n, x_bd = (tensor.bfloat16() for tensor in (params.W_enc, params.b_enc, xc_bd))
    kept = alone = total = 0
    for row in range(0, len(xc_bd), 256):
        best = linear(xc_bd[row : row + 256], params.W_enc, params.b_enc).topk(size.k, dim=1)
        expected = torch.zeros(len(best.values), size.n, dtype=torch.bool).scatter_(1, best.indices, best.values > 0)
        rough = linear(x_bd[row : row + 256], W_nd, b_n).topk(size.k, dim=1).indices
        pairs = slice(int(support.indptr[row]), int(support.indptr[row + len(expected)]))
        kept += int(expected[support.tokens[pairs] - row, support.latents[pairs]].sum())
        alone += int(expected.gather(1, rough).sum())
        total += int(expected.sum())
    return {
        "kept": kept / total,
        "bfloat16_alone": alone / total,
        "candidates_per_k": float(found[0].double().mean()) / size.k,
    }


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Median, least and most."""
    return {name: round(of(values), digits) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def summary(size: Size, threads: int, found: dict[str, list[float]], entries: dict[str, float]) -> dict[str, Any]:
    """Rates by kind, and ratios of one turn's pairs."""

    def ratio(above: str, below: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(found[above], found[below], strict=True)], 3)

    ratios = {
        f"sparse_to_{kind}": ratio("sparse", kind) for kind in found if kind not in ("sparse", "sparse_some_dead")
    }
    price = spread([1 - b / a for a, b in zip(found["sparse"], found["sparse_some_dead"], strict=True)], 3)
    return {
        **size._asdict(),
        "threads": threads,
        "tokens_per_s": {kind: spread(values, 0) for kind, values in found.items()},
        **ratios,
        "auxk_share_of_step_at_1_percent_dead": price,
        "support": {name: round(value, 6) for name, value in entries.items()},
    }


def line(row: dict[str, Any]) -> str:
    """A case as a line of the table."""
    of_dense, of_product = row["sparse_to_dense"], row["sparse_to_bfloat16_product"]
    return (
        f"{row['d']:4} {row['n']:6} {row['k']:3} {row['threads']:4} {row['tokens_per_s']['dense']['median']:11,.0f} "
        f"{row['tokens_per_s']['sparse']['median']:12,.0f}  {of_dense['median']:6.2f} "
        f"{of_dense['min']:6.2f}..{of_dense['max']:<6.2f} {of_product['median']:6.2f} "
        f"{row['auxk_share_of_step_at_1_percent_dead']['median']:6.1%} {row['support']['kept']:.4%} "
        f"{row['support']['bfloat16_alone']:.3%} {row['support']['candidates_per_k']:5.2f}"
    )


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small cases, two turns; nothing is written")
    parser.add_argument("--turns", type=int, default=5, help="how often everything takes its turn")
    options = parser.parse_args()
    reuse_freed_memory()  # as every asset does
    quick = options.quick
    every = os.cpu_count() or 1
    cases = [(Size(*size), 1) for size in (QUICK if quick else [*DEMO, *LARGE])]
    if every > 1 and not quick:
        cases += [(Size(*size), every) for size in LARGE]
    print(
        "   d      n   k  thr  dense tok/s sparse tok/s   ratio    min..max  of bf16   AuxK     kept bf16 alone cand/k"
    )
    results, profiles = [], []
    with fast_float32_matmul() as precision, torch.no_grad():
        for size, threads in cases:
            torch.set_num_threads(threads)
            results.append(summary(size, threads, *rates(size, threads, 2 if quick else options.turns)))
            print(line(results[-1]), flush=True)
        for size in QUICK[:1] if quick else PROFILED:
            for threads in sorted({1, every}):
                torch.set_num_threads(threads)
                profiles.append(profile(Size(*size), threads, 3 if quick else 20))
                print(profiles[-1], flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "matmul_precision": precision,
        **ways(),
    }
    if not quick:
        path = Path(__file__).parent / "results" / "training_step.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": machine, "cases": results, "profiles": profiles}, indent=2) + "\n")


if __name__ == "__main__":
    main()
