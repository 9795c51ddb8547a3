"""The k largest pre-activations of each row, exactly, from scores that are not.

All n scores of a row are only a screen: in bfloat16 where the CPU multiplies in it. What could be among the k largest,
by a bound on the screen's error, is scored again in the parameters' own precision, one pair at a time, and the k best
of these are kept. So the outcome depends neither on the screen's precision nor on how rows are cut into chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sae_pipeline.kernels.pairs import Support, sampled_product, starts
from sae_pipeline.kernels.precision import screening_dtype
from sae_pipeline.kernels.selection import candidates, largest
from sae_pipeline.kernels.state import Parameters

SCORE_BYTES = 8 << 20  # scores held at a time: about what stays in cache
ROWS = 512  # of a weight matrix rounded at a time, so that what rounding took away stays in cache
MARGIN = 1.01  # for the rounding of the bound itself

_scratch = threading.local()


class Screen(NamedTuple):
    """Parameters as the screen sees them, with the largest row norm of the weights and of what rounding took away."""

    W_enc: Tensor
    b_enc: Tensor
    weight: Tensor
    weight_loss: Tensor
    bias: Tensor
    bias_loss: Tensor


def topk_support(params: Parameters, xc_bd: Tensor, k: int) -> Support | None:
    """The support of TopK: the positive entries among the k largest of W_enc xc + b_enc; of equal ones the first.

    At most k pairs a row, latents ascending. None where no bound holds because rows or parameters are not finite.
    """
    screen = make_screen(params, screening_dtype(xc_bd.dtype))
    x_bd = xc_bd.to(screen.W_enc.dtype)
    slack_b = 2 * error_bound(screen, xc_bd, x_bd)
    if not bool(slack_b.isfinite().all()):
        return None
    counts_b, latents = _candidates(screen, x_bd, k, slack_b)
    indptr = starts(counts_b)
    values = sampled_product(indptr, latents, xc_bd, params.W_enc).add_(params.b_enc[latents])
    counts_b, kept = largest(indptr, values, k)
    return Support.of(counts_b, latents[kept], values[kept])


def make_screen(params: Parameters, dtype: torch.dtype) -> Screen:
    """W_enc and b_enc in the screen's precision: a function of the parameters alone, made anew at every step.

    The weights lie in memory of this thread that the next screen takes over.
    """
    W_nd, b_n = params.W_enc, params.b_enc
    rounded_nd = W_nd if dtype == W_nd.dtype else _buffer("weights", W_nd.shape, dtype)
    norms = []
    for start in range(0, len(W_nd), ROWS):
        rows, rounded = W_nd[start : start + ROWS], rounded_nd[start : start + ROWS]
        lost = torch.zeros(1, 1, dtype=W_nd.dtype) if rounded_nd is W_nd else rows - rounded.copy_(rows)
        norms.append(torch.stack([torch.linalg.vector_norm(part, dim=1).max() for part in (rows, lost)]))
    weight, weight_loss = torch.stack(norms).amax(0)
    bias = b_n.to(dtype)
    return Screen(rounded_nd, bias, weight, weight_loss, b_n.abs().max(), (b_n - bias).abs().max())


def error_bound(screen: Screen, xc_bd: Tensor, x_bd: Tensor) -> Tensor:
    """How far, before it is rounded to the screen's precision, a score of each row may be from the exact one, [b].

    With δ for what rounding took away: |x̂·ŵ − x·w| ≤ ‖δx‖ ‖ŵ‖ + ‖x‖ ‖δw‖ by Cauchy and Schwarz, the same for the bias,
    and (d + 2) ε of the largest terms for two sums, the screen's and the exact one's (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, §3.1).
    """
    norm_b = torch.linalg.vector_norm(xc_bd, dim=1)
    loss_b = torch.linalg.vector_norm(xc_bd - x_bd, dim=1) if x_bd.dtype != xc_bd.dtype else torch.zeros_like(norm_b)
    rounded_b, rounded = norm_b + loss_b, screen.weight + screen.weight_loss
    sums_b = (xc_bd.shape[1] + 2) * torch.finfo(xc_bd.dtype).eps * (rounded_b * rounded + screen.bias)
    bound_b: Tensor = MARGIN * (loss_b * rounded + norm_b * screen.weight_loss + screen.bias_loss + sums_b)
    return bound_b


def _candidates(screen: Screen, x_bd: Tensor, k: int, slack_b: Tensor) -> tuple[Tensor, Tensor]:
    n, dtype = len(screen.W_enc), screen.W_enc.dtype
    # A score is rounded once when it is stored, and so is the k-th largest: by half a unit in the last place each.
    share = 1.0 - torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1.0
    counts, latents = [], []
    for rows in chunks_of_rows(x_bd, n):
        part_bd = x_bd[rows]
        scores_bn = _buffer("scores", (len(part_bd), n), dtype)
        torch.addmm(screen.b_enc, part_bd, screen.W_enc.t(), out=scores_bn)
        found = candidates(scores_bn, k, slack_b[rows], share)
        counts.append(found[0])
        latents.append(found[1])
    return torch.cat(counts), torch.cat(latents)


def chunks_of_rows(x_bd: Tensor, n: int) -> Iterator[slice]:
    """Slices of the rows, each of so many that their n scores in the same precision stay in cache."""
    rows = max(1, SCORE_BYTES // (x_bd.dtype.itemsize * n))
    for start in range(0, len(x_bd), rows):
        yield slice(start, start + rows)


def _buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of this thread, contents arbitrary: fresh pages for large tensors cost as much as what is done in them."""
    size = torch.Size(shape).numel()
    held: Tensor | None = getattr(_scratch, f"{name}_{dtype.itemsize}", None)
    if held is None or held.dtype != dtype or len(held) < size:
        held = torch.empty(size, dtype=dtype)
        setattr(_scratch, f"{name}_{dtype.itemsize}", held)
    return held[:size].view(shape)
