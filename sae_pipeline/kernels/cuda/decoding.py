"""Reconstruction, its error, and the gradient at the latents from one reading of a token's k decoder rows."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_pipeline.kernels.cuda.interface import Decoded, Subset

TILE_ELEMENTS = 8192  # rows × dimensions held by a program at a time


@triton.jit
def _decode_kernel(
    latents_in, values_in, W, target, count, error_out, products_out, squares_out, n, d, k,
    SUBSET: tl.constexpr, SLOTS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """For one token: each stretch of dimensions gives a piece of the error, which at once meets the rows it is of."""
    token, slots = tl.program_id(0), tl.arange(0, SLOTS)
    latents = tl.load(latents_in + token * k + slots, mask=slots < k, other=n)
    values = tl.load(values_in + token * k + slots, mask=slots < k, other=0.0)
    products, squares = tl.zeros_like(values), tl.zeros((DIMS,), values.dtype)
    end = d
    if SUBSET:
        end = tl.where(tl.load(count) > 0, d, 0)
    for first in range(0, end, DIMS):
        dims = first + tl.arange(0, DIMS)
        rows = tl.load(
            W + latents.to(tl.int64)[:, None] * d + dims[None, :],
            mask=(latents < n)[:, None] & (dims < d)[None, :], other=0.0,
        )  # fmt: skip
        error = tl.sum(values[:, None] * rows, 0) - tl.load(target + token * d + dims, mask=dims < d, other=0.0)
        error = tl.where(dims < d, error, 0.0)
        tl.store(error_out + token * d + dims, error, mask=dims < d)
        products += tl.sum(rows * error[None, :], 1)
        squares += error * error
    tl.store(products_out + token * k + slots, products, mask=slots < k)
    tl.store(squares_out + token, tl.sum(squares, 0))


def decode(latents_bk: Tensor, values_bk: Tensor, W_dec: Tensor, target_bd: Tensor, subset: Subset | None) -> Decoded:
    """See `interface.Decoded`; with an empty subset nothing is read, and the error is whatever was in memory."""
    (b, d), k = target_bd.shape, latents_bk.shape[1]
    slots = triton.next_power_of_2(k)
    dims = min(triton.next_power_of_2(d), max(16, TILE_ELEMENTS // slots))
    decoded = Decoded(torch.empty_like(target_bd), torch.empty_like(values_bk), target_bd.new_empty(b))
    _decode_kernel[(b,)](
        latents_bk, values_bk, W_dec, target_bd, None if subset is None else subset.length, *decoded,
        len(W_dec), d, k, SUBSET=subset is not None, SLOTS=slots, DIMS=dims,
    )  # fmt: skip
    return decoded
