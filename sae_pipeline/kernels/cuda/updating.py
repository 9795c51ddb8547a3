"""Weight gradients that are never whole in memory: a program sums one row's gradient and takes its Adam step at once.

The pairs are grouped by latent, so a row's gradient is the sum over a stretch of them. Frequent latents have long
stretches; the pairs are therefore also cut into windows of equal length, a first kernel sums every window that lies
within one latent, and a row then adds up its whole windows and the pairs before and after. Every sum is taken in an
order that the pairs alone decide: no atomics, same bits every time.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sae_pipeline.kernels.cuda.interface import Pairs, Slot
from sae_pipeline.kernels.optimiser import Optimiser

WINDOW = 256  # pairs
TILE_ELEMENTS = 8192  # pairs × dimensions loaded at a time


@triton.jit
def _sum_pairs(total, first, last, tokens, weights, source, b, d, PAIRS: tl.constexpr, DIMS: tl.constexpr):
    """total + Σ weights · source[token mod b] over the pairs first:last, PAIRS of them at a time."""
    dims = tl.arange(0, DIMS)
    for start in range(first, last, PAIRS):
        pairs = start + tl.arange(0, PAIRS)
        rows = tl.load(tokens + pairs, mask=pairs < last, other=0).to(tl.int64) % b
        weight = tl.load(weights + pairs, mask=pairs < last, other=0.0)
        tile = tl.load(
            source + rows[:, None] * d + dims[None, :],
            mask=(pairs < last)[:, None] & (dims < d)[None, :], other=0.0,
        )  # fmt: skip
        total += tl.sum(weight[:, None] * tile, 0)
    return total


@triton.jit
def _window_kernel(
    latents, tokens, weights, source, windows, n, b, d,
    WINDOW: tl.constexpr, PAIRS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The sum over one window of pairs, if all are of one latent."""
    first = tl.program_id(0) * WINDOW
    latent = tl.load(latents + first)
    if (latent < n) & (latent == tl.load(latents + first + WINDOW - 1)):
        total = tl.zeros((DIMS,), windows.dtype.element_ty)
        total = _sum_pairs(total, first, first + WINDOW, tokens, weights, source, b, d, PAIRS, DIMS)
        dims = tl.arange(0, DIMS)
        tl.store(windows + tl.program_id(0).to(tl.int64) * d + dims, total, mask=dims < d)


@triton.jit
def _row_gradient(
    row, offsets, tokens, weights, source, windows, b, d, UNIT: tl.constexpr,
    WINDOW: tl.constexpr, PAIRS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The gradient of this program's row: pairs up to a window's start, whole windows, the rest; tangent if UNIT."""
    latent, dims = tl.program_id(0), tl.arange(0, DIMS)
    first, last = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    head = tl.minimum(tl.cdiv(first, WINDOW) * WINDOW, last)
    tail = tl.maximum(last // WINDOW * WINDOW, head)
    total = _sum_pairs(tl.zeros_like(row), first, head, tokens, weights, source, b, d, PAIRS, DIMS)
    for window in range(head // WINDOW, tail // WINDOW):
        total += tl.load(windows + window * d + dims, mask=dims < d, other=0.0)
    total = _sum_pairs(total, tail, last, tokens, weights, source, b, d, PAIRS, DIMS)
    if UNIT:
        total -= row * tl.sum(total * row, 0)
    return total


@triton.jit
def _squares_kernel(
    parameter, out, offsets, tokens, weights, source, windows, b, d, UNIT: tl.constexpr,
    WINDOW: tl.constexpr, PAIRS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The squared norm of one row's gradient."""
    dims = tl.arange(0, DIMS)
    row = tl.zeros((DIMS,), out.dtype.element_ty)
    if UNIT:
        row = tl.load(parameter + tl.program_id(0).to(tl.int64) * d + dims, mask=dims < d, other=0.0)
    gradient = _row_gradient(row, offsets, tokens, weights, source, windows, b, d, UNIT, WINDOW, PAIRS, DIMS)
    tl.store(out + tl.program_id(0), tl.sum(gradient * gradient, 0))


@triton.jit
def _adam(
    row, gradient, at, inside, parameter, first, second, average, scalars,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, EMA: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """One Adam step on elements `at`, unit norm if UNIT, running average if EMA; scalars: `interface.Scalars`."""
    gradient *= tl.load(scalars + 3)
    m = tl.load(first + at, mask=inside, other=0.0)
    v = tl.load(second + at, mask=inside, other=0.0)
    m += (1 - BETA1) * (gradient - m)
    v += (1 - BETA2) * (gradient * gradient - v)
    row -= tl.load(scalars + 1) * m / (tl.sqrt(v) / tl.load(scalars + 2) + EPS)
    if UNIT:
        row /= tl.sqrt(tl.sum(row * row, 0))
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)
    tl.store(parameter + at, row, mask=inside)
    if EMA is not None:
        mean = tl.load(average + at, mask=inside, other=0.0)
        tl.store(average + at, mean + (1 - EMA) * (row - mean), mask=inside)


@triton.jit
def _update_rows_kernel(
    parameter, first, second, average, offsets, tokens, weights, source, windows, scalars, b, d,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, EMA: tl.constexpr, UNIT: tl.constexpr,
    WINDOW: tl.constexpr, PAIRS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """One row from its gradient to its new value, unless the step is to change nothing."""
    if tl.load(scalars) > 0:
        dims = tl.arange(0, DIMS)
        at = tl.program_id(0).to(tl.int64) * d + dims
        row = tl.load(parameter + at, mask=dims < d, other=0.0)
        gradient = _row_gradient(row, offsets, tokens, weights, source, windows, b, d, UNIT, WINDOW, PAIRS, DIMS)
        _adam(row, gradient, at, dims < d, parameter, first, second, average, scalars, BETA1, BETA2, EPS, EMA, UNIT)


@triton.jit
def _update_vector_kernel(
    parameter, first, second, average, gradient, scalars, size,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, EMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of a vector, unless the step is to change nothing."""
    if tl.load(scalars) > 0:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(parameter + at, mask=at < size, other=0.0)
        g = tl.load(gradient + at, mask=at < size, other=0.0)
        _adam(value, g, at, at < size, parameter, first, second, average, scalars, BETA1, BETA2, EPS, EMA, False)


@triton.jit
def _segment_sums_kernel(values, offsets, out, BLOCK: tl.constexpr):
    """The sum of one latent's values."""
    latent = tl.program_id(0)
    last = tl.load(offsets + latent + 1)
    total = tl.zeros((BLOCK,), out.dtype.element_ty)
    for start in range(tl.load(offsets + latent), last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(values + at, mask=at < last, other=0.0)
    tl.store(out + latent, tl.sum(total, 0))


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of the values between consecutive offsets."""
    sums = values.new_empty(len(offsets) - 1)
    _segment_sums_kernel[(len(sums),)](values, offsets, sums, BLOCK=128, num_warps=1)
    return sums


def squares(pairs: Pairs, weights: Tensor, source: Tensor, unit_rows: Tensor | None) -> Tensor:
    """Squared norms of the gradient rows, [n]."""
    found = weights.new_empty(len(pairs.offsets) - 1)
    _squares_kernel[(len(found),)](
        unit_rows, found, pairs.offsets, pairs.tokens, weights, source, _windows(pairs, weights, source, len(found)),
        *source.shape, UNIT=unit_rows is not None, **tiles(source.shape[1]),
    )  # fmt: skip
    return found


def update_rows(
    slot: Slot, pairs: Pairs, weights: Tensor, source: Tensor, scalars: Tensor, constants: Optimiser, unit: bool
) -> None:
    """See `interface.UpdateRows`."""
    n = len(slot.parameter)
    _update_rows_kernel[(n,)](
        *slot, pairs.offsets, pairs.tokens, weights, source, _windows(pairs, weights, source, n), scalars,
        *source.shape, UNIT=unit, **_constants(slot, constants), **tiles(source.shape[1]),
    )  # fmt: skip


def update_vector(slot: Slot, gradient: Tensor, scalars: Tensor, constants: Optimiser) -> None:
    """One Adam step on a vector, in place."""
    size = len(gradient)
    _update_vector_kernel[(triton.cdiv(size, 256),)](
        *slot, gradient, scalars, size, **_constants(slot, constants), BLOCK=256
    )


def _windows(pairs: Pairs, weights: Tensor, source: Tensor, n: int) -> Tensor:
    """Sums of the whole windows of pairs that lie within one latent; the others are left as they are and not read."""
    b, d = source.shape
    windows = source.new_empty(len(weights) // WINDOW, d)
    if len(windows):
        _window_kernel[(len(windows),)](
            pairs.latents, pairs.tokens, weights, source, windows, n, b, d, **tiles(d)
        )  # fmt: skip
    return windows


def tiles(d: int) -> dict[str, int]:
    """How a row of d dimensions is cut and how many warps share it."""
    dims = triton.next_power_of_2(d)
    pairs = min(8, max(1, TILE_ELEMENTS // dims))
    return {"WINDOW": WINDOW, "PAIRS": pairs, "DIMS": dims, "num_warps": 8 if dims > 1024 else 4}


def _constants(slot: Slot, constants: Optimiser) -> dict[str, float | None]:
    beta1, beta2 = constants.betas
    ema = None if slot.average is None else constants.ema
    return {"BETA1": beta1, "BETA2": beta2, "EPS": constants.eps, "EMA": ema}
