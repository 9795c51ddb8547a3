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

from sae_pipeline.kernels import compiled
from sae_pipeline.kernels.crew import ALONE, Crew
from sae_pipeline.kernels.pairs import Support, sampled_product, starts
from sae_pipeline.kernels.precision import screening_dtype
from sae_pipeline.kernels.selection import candidates, largest
from sae_pipeline.kernels.state import Parameters

SCORE_BYTES = 8 << 20  # scores held at a time: about what stays in cache
ROWS = 256  # of a matrix whose rounding is measured at a time: what stays in cache
MARGIN = 1.01  # for the rounding of the bound itself
LOOSE, LOOSE_AT_LEAST = 4, 32  # a screen that lets through more than LOOSE * k + LOOSE_AT_LEAST a row is of no use

_scratch = threading.local()


class Rounded(NamedTuple):
    """Rows in the screen's precision, [r, d + 2]: the last two columns carry the biases through the product.

    norms, losses [r]: of the first d columns before rounding, and of what it took away from them.
    """

    rows: Tensor
    norms: Tensor
    losses: Tensor


class Screen(NamedTuple):
    """Parameters as the screen sees them: weights and biases; these once more [n], and what rounding took from them."""

    weights: Rounded
    b_enc: Tensor
    bias_losses: Tensor


def topk_support(params: Parameters, xc_bd: Tensor, k: int, screen: Screen | None = None) -> Support | None:
    """The support of TopK: the positive entries among the k largest of W_enc xc + b_enc; of equal ones the first.

    At most k pairs a row, latents ascending. None where no bound holds because rows or parameters are not finite.
    `screen`: of these parameters, if it is there already.
    """
    own = xc_bd.dtype
    for dtype in dict.fromkeys((screening_dtype(own), own)):
        found = screened(params, xc_bd, k, dtype, screen)
        if found is not None:
            counts_b, latents = found
            indptr = starts(counts_b)
            values = sampled_product(indptr, latents, xc_bd, params.W_enc).add_(params.b_enc.index_select(0, latents))
            counts_b, kept = largest(indptr, values, k)
            return Support.of(counts_b, latents.index_select(0, kept), values.index_select(0, kept))
    return None


def screened(
    params: Parameters, xc_bd: Tensor, k: int, dtype: torch.dtype, screen: Screen | None = None
) -> tuple[Tensor, Tensor] | None:
    """What could be among the k largest of each row, as `candidates` gives it, by scores in `dtype`.

    None if no bound holds, or if the bound of a precision below the rows' own is too loose to be of use: one latent
    whose weights dwarf the others' is enough for that.
    """
    if screen is None or screen.weights.rows.dtype != dtype:
        screen = make_screen(params, dtype)
    x = make_rows(xc_bd, dtype)
    slack_b = 2 * error_bound(screen, x)
    if not bool(slack_b.isfinite().all()):
        return None
    W_nd = screen.weights.rows
    most = len(W_nd) if dtype == xc_bd.dtype else LOOSE * k + LOOSE_AT_LEAST
    # A score is rounded once when it is stored, and so is the k-th largest: by half a unit in the last place each.
    share = 1.0 - torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1.0
    counts, latents = [], []
    for rows in chunks_of_rows(x.rows, len(W_nd)):
        found = candidates(scores(screen, x.rows[rows]), k, slack_b[rows], share)
        if len(found[1]) > most * len(found[0]):
            return None
        counts.append(found[0])
        latents.append(found[1])
    return torch.cat(counts), torch.cat(latents)


def scores(screen: Screen, rows_bd: Tensor) -> Tensor:
    """Of all latents for rows in the screen's precision, [b, n], in memory that the next call takes over."""
    W_nd = screen.weights.rows
    scores_bn = _buffer("scores", len(rows_bd), len(W_nd), rows_bd.dtype)
    return torch.mm(rows_bd, W_nd.t(), out=scores_bn)


def ways() -> dict[str, str]:
    """How TopK is found for float32 on this machine. It decides how fast a step is, and nothing else."""
    screen = str(screening_dtype(torch.float32)).removeprefix("torch.")
    return {"screen": screen, "selection": "compiled" if compiled.library() else "PyTorch"}


def make_screen(params: Parameters, dtype: torch.dtype, crew: Crew = ALONE) -> Screen:
    """W_enc and b_enc in the screen's precision: a function of the parameters alone, made anew at every step.

    A bias is the sum of two columns, the second for what is lost in the first. Added to the scores by themselves, the
    biases would cost a fifth of a product at d = 256.
    """
    n, d = params.W_enc.shape
    rows = _buffer("weights", n, d + 2, dtype)
    parts = crew.each(lambda part: round_rows(params.W_enc[part], rows[part, :d]), crew.parts(n))
    norms, losses = (torch.cat(of_part) for of_part in zip(*parts, strict=True))
    bias_losses = params.b_enc.clone()
    for column in (d, d + 1):
        bias_losses -= rows[:, column].copy_(bias_losses)
    return Screen(Rounded(rows, norms, losses), params.b_enc - bias_losses, bias_losses)


def make_rows(xc_bd: Tensor, dtype: torch.dtype) -> Rounded:
    """Rows [b, d] in the screen's precision, with ones for the biases."""
    b, d = xc_bd.shape
    rows = _buffer("rows", b, d + 2, dtype)
    rows[:, d:] = 1.0
    return Rounded(rows, *round_rows(xc_bd, rows[:, :d]))


def round_rows(rows_rd: Tensor, rounded_rd: Tensor) -> tuple[Tensor, Tensor]:
    """Write rows in another precision; their norms [r], and those of what was lost."""
    library = compiled.library()
    if library is not None and (rows_rd.dtype, rounded_rd.dtype) == (torch.float32, torch.bfloat16):
        return compiled.round_rows(library, rows_rd, rounded_rd)
    norms = torch.linalg.vector_norm(rows_rd, dim=1)
    losses = torch.zeros_like(norms)
    for start in range(0, len(rows_rd), ROWS):
        exact = rows_rd[start : start + ROWS]
        part = rounded_rd[start : start + ROWS].copy_(exact)
        if part.dtype != exact.dtype:
            lost = _buffer("lost", len(exact), exact.shape[1], exact.dtype).copy_(part).sub_(exact)
            torch.linalg.vector_norm(lost, dim=1, out=losses[start : start + ROWS])
    return norms, losses


def error_bound(screen: Screen, x: Rounded) -> Tensor:
    """How far, before it is rounded to the screen's precision, a score of each row may be from the exact one, [b].

    With δ for what rounding took away: |x̂·ŵ − x·w| ≤ ‖δx‖ ‖ŵ‖ + ‖x‖ ‖δw‖ by Cauchy and Schwarz, the same for the bias,
    and (d + 2) ε of the largest terms for two sums, the screen's and the exact one's (Higham, Accuracy and Stability
    of Numerical Algorithms, 2002, §3.1). Left out are latents that neither of the two can find positive on any row.
    """
    loss, norm = screen.weights.losses.max(), screen.weights.norms.max()
    products_b = (x.norms + x.losses) * (norm + loss)
    possible_n = screen.b_enc > -MARGIN * products_b.max()
    bias, bias_loss = ((term_n * possible_n).abs().max() for term_n in (screen.b_enc, screen.bias_losses))
    epsilon = x.rows.shape[1] * torch.finfo(x.norms.dtype).eps
    bound_b: Tensor = MARGIN * (x.losses * (norm + loss) + x.norms * loss + bias_loss + epsilon * (products_b + bias))
    return bound_b


def chunks_of_rows(x_bd: Tensor, n: int) -> Iterator[slice]:
    """Slices of the rows, each of so many that their n scores in the same precision stay in cache."""
    rows = max(1, SCORE_BYTES // (x_bd.dtype.itemsize * n))
    for start in range(0, len(x_bd), rows):
        yield slice(start, start + rows)


def _buffer(name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory of this thread, contents arbitrary: fresh pages for large tensors cost as much as what is done in them.

    The next call of the same name takes it over.
    """
    size = rows * columns
    held: Tensor | None = getattr(_scratch, f"{name}_{dtype.itemsize}", None)
    if held is None or held.dtype != dtype or len(held) < size:
        held = torch.empty(size, dtype=dtype)
        setattr(_scratch, f"{name}_{dtype.itemsize}", held)
    return held[:size].view(rows, columns)
