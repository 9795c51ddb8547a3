"""TopK without scores in memory: tiles of pre-activations go from the matrix units into a running list of the k best.

A program owns a few tokens and walks over all latents, so a row's list depends on that row alone. Lists are ordered by
(value, lower latent first): the result is one set, whatever the tiles.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_pipeline.kernels.cuda.interface import Subset

LATENTS_PER_TILE = 128
DIMS_PER_TILE = 64
LIST_ELEMENTS = 8192  # tokens of a program × places of its lists: what the registers of a block hold beside a tile
MIN_MARGIN, MAX_MARGIN = 16, 64  # candidates beyond k: k of them within these bounds
ANY = -3e38  # below every score: a score that 16 bits round to nothing may be positive


@triton.jit
def _merge(values, latents, scores, candidates, PLACES: tl.constexpr):
    """Let candidates [tokens, c] that beat the worst of a token's list [tokens, PLACES] take its place, best first."""
    places = tl.arange(0, PLACES)[None, :]
    while tl.max((tl.max(scores, 1) >= tl.min(values, 1)).to(tl.int32), 0) > 0:
        score, worst = tl.max(scores, 1), tl.min(values, 1)
        latent = tl.min(tl.where(scores == score[:, None], candidates, 2147483647), 1)
        among_worst = tl.where(values == worst[:, None], latents, -1)  # of equal values the highest latent goes
        enters = (score > worst) | ((score == worst) & (latent < tl.max(among_worst, 1)))
        here = enters[:, None] & (places == tl.argmax(among_worst, 1)[:, None])
        values = tl.where(here, score[:, None], values)
        latents = tl.where(here, latent[:, None], latents)
        scores = tl.where(candidates == latent[:, None], float("-inf"), scores)
    return values, latents


@triton.jit
def _empty_lists(accumulator, n, k, FLOOR: tl.constexpr, PLACES: tl.constexpr):
    """k places of value FLOOR and latent n a token; places beyond k hold infinity and are never given up."""
    free = (tl.arange(0, PLACES) < k)[None, :]
    values = tl.where(free, FLOOR, float("inf")) + tl.zeros_like(accumulator)[:, None]
    return values, tl.zeros(values.shape, tl.int32) + n


@triton.jit
def _store_lists(latents_out, values_out, tokens, values, latents, broken, b, k, PLACES: tl.constexpr):
    """Write k places a token; a token with a score that is not a number gets such values, so that the loss shows it."""
    places = tl.arange(0, PLACES)[None, :]
    out = tokens[:, None] * k + places
    inside = (tokens < b)[:, None] & (places < k)
    tl.store(latents_out + out, latents, mask=inside)
    tl.store(values_out + out, tl.where(broken[:, None] > 0, float("nan"), values), mask=inside)


@triton.jit
def _select_kernel(
    x, W, bias, subset, count, latents_out, values_out, b, n, d, k,
    SUBSET: tl.constexpr, FLOOR: tl.constexpr,
    TOKENS: tl.constexpr, LATENTS: tl.constexpr, DIMS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """For TOKENS tokens: score all latents (or the subset's first `count`) by tiles; keep the k best above FLOOR."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    broken = tl.zeros((TOKENS,), values_out.dtype.element_ty)
    values, latents = _empty_lists(broken, n, k, FLOOR, PLACES)
    total = tl.load(count) if SUBSET else n
    for start in range(0, total, LATENTS):
        places = start + tl.arange(0, LATENTS)
        tile = tl.load(subset + places, mask=places < total, other=n) if SUBSET else places
        scores = tl.zeros((TOKENS, LATENTS), values_out.dtype.element_ty)
        for first in range(0, d, DIMS):
            dims = first + tl.arange(0, DIMS)
            x_tile = tl.load(
                x + tokens[:, None] * d + dims[None, :], mask=(tokens < b)[:, None] & (dims < d)[None, :], other=0.0
            )
            W_tile = tl.load(
                W + tile.to(tl.int64)[None, :] * d + dims[:, None],
                mask=(tile < n)[None, :] & (dims < d)[:, None], other=0.0,
            )  # fmt: skip
            scores = tl.dot(x_tile, W_tile, scores, input_precision="ieee", out_dtype=scores.dtype)
        scores += tl.load(bias + tile, mask=tile < n, other=0.0)[None, :]
        broken += tl.max((scores != scores).to(tl.int32), 1)
        scores = tl.where((scores > FLOOR) & (tile < n)[None, :], scores, float("-inf"))
        values, latents = _merge(values, latents, scores, tile[None, :] + tl.zeros_like(scores).to(tl.int32), PLACES)
    _store_lists(latents_out, values_out, tokens, values, latents, broken, b, k, PLACES)


@triton.jit
def _rescore_kernel(
    x, W, bias, candidates_in, count, latents_out, values_out, b, n, d, c, k,
    SUBSET: tl.constexpr, DIMS: tl.constexpr, CANDIDATES: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """For one token: exact scores of its c candidates, and the k best of them."""
    token = tl.program_id(0) + tl.arange(0, 1)
    slots = tl.arange(0, CANDIDATES)
    tile = tl.load(candidates_in + tl.program_id(0) * c + slots, mask=slots < c, other=n)
    scores = tl.load(bias + tile, mask=tile < n, other=0.0)
    end = d
    if SUBSET:
        end = tl.where(tl.load(count) > 0, d, 0)  # all places are empty
    for first in range(0, end, DIMS):
        dims = first + tl.arange(0, DIMS)
        x_row = tl.load(x + tl.program_id(0) * d + dims, mask=dims < d, other=0.0)
        rows = tl.load(
            W + tile.to(tl.int64)[:, None] * d + dims[None, :],
            mask=(tile < n)[:, None] & (dims < d)[None, :], other=0.0,
        )  # fmt: skip
        scores += tl.sum(rows * x_row[None, :], 1)
    broken = tl.zeros((1,), values_out.dtype.element_ty) + tl.max((scores != scores).to(tl.int32), 0)
    scores = tl.where((scores > 0) & (tile < n), scores, float("-inf"))
    values, latents = _empty_lists(broken, n, k, 0.0, PLACES)
    values, latents = _merge(values, latents, scores[None, :], tile[None, :], PLACES)
    _store_lists(latents_out, values_out, token, values, latents, broken, b, k, PLACES)


def select(xc_bd: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, subset: Subset | None) -> tuple[Tensor, Tensor]:
    """See `interface.Select`; products in full precision."""
    return _best(xc_bd, W_enc, b_enc, k, subset, 0.0)


def _best(
    xc_bd: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, subset: Subset | None, floor: float
) -> tuple[Tensor, Tensor]:
    (b, d), n = xc_bd.shape, len(W_enc)
    latents_bk, values_bk = _lists(xc_bd, b_enc.dtype, k)
    places = triton.next_power_of_2(k)
    tokens = tokens_per_program(places)
    listed, count = subset if subset is not None else (None, None)
    _select_kernel[(triton.cdiv(b, tokens),)](
        xc_bd, W_enc, b_enc, listed, count, latents_bk, values_bk, b, n, d, k,
        SUBSET=subset is not None, FLOOR=floor, TOKENS=tokens, LATENTS=LATENTS_PER_TILE, DIMS=DIMS_PER_TILE,
        PLACES=places, num_warps=8,
    )  # fmt: skip
    return latents_bk, values_bk


def select_screened(
    xc_bd: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, subset: Subset | None, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """The same, found among the best k and a margin by 16-bit products with sums in float32, scored again exactly."""
    n, c = len(W_enc), candidates(k, len(W_enc))
    candidates_bc, _ = _best(xc_bd.to(dtype), W_enc.to(dtype), b_enc, c, subset, ANY)
    latents_bk, values_bk = _lists(xc_bd, b_enc.dtype, k)
    slots = triton.next_power_of_2(c)
    (b, d), dims = xc_bd.shape, max(16, 4096 // slots)
    _rescore_kernel[(b,)](
        xc_bd, W_enc, b_enc, candidates_bc, None if subset is None else subset.length, latents_bk, values_bk,
        b, n, d, c, k, SUBSET=subset is not None, DIMS=dims, CANDIDATES=slots, PLACES=triton.next_power_of_2(k),
    )  # fmt: skip
    return latents_bk, values_bk


def candidates(k: int, n: int) -> int:
    """How many of n latents 16-bit scores put up for exact scoring where k are wanted."""
    return min(n, k + min(MAX_MARGIN, max(MIN_MARGIN, k)))


def tokens_per_program(places: int) -> int:
    """Tokens whose lists of so many places fit beside a tile."""
    return min(128, max(16, LIST_ELEMENTS // places))


def _lists(xc_bd: Tensor, dtype: torch.dtype, k: int) -> tuple[Tensor, Tensor]:
    shape = (len(xc_bd), k)
    return (
        torch.empty(shape, dtype=torch.int32, device=xc_bd.device),
        torch.empty(shape, dtype=dtype, device=xc_bd.device),
    )
