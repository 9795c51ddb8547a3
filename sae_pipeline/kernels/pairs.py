"""(token, latent) pairs, and what the sparse step does with them instead of dense products."""

from __future__ import annotations

import warnings
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sae_pipeline.kernels import compiled

with warnings.catch_warnings():
    # PyTorch says once a process that its CSR tensors are in beta; say it here, where nobody has to hear it.
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 1], [0], [1.0], size=(1, 1), check_invariants=False)


class Support(NamedTuple):
    """The pairs that are active, ordered by token: `indptr` [b+1], the others flat [pairs]; values are positive."""

    indptr: Tensor
    tokens: Tensor
    latents: Tensor
    values: Tensor

    @classmethod
    def of(cls, counts_b: Tensor, latents: Tensor, values: Tensor) -> Self:
        """From how many pairs each token has, and the pairs in order of their tokens."""
        tokens = torch.arange(len(counts_b)).repeat_interleave(counts_b, output_size=len(latents))
        return cls(starts(counts_b), tokens, latents, values)


def starts(counts: Tensor) -> Tensor:
    """Where each of several runs begins and the last one ends, from their lengths."""
    return F.pad(counts.cumsum(0), (1, 0))


def decode(support: Support, W_dec: Tensor) -> Tensor:
    """Σ z_j W_dec[j] for each token, [b, d]."""
    return F.embedding_bag(
        support.latents, W_dec, support.indptr, mode="sum", per_sample_weights=support.values, include_last_offset=True
    )


def sampled_product(indptr: Tensor, latents: Tensor, rows_bd: Tensor, W_nd: Tensor) -> Tensor:
    """rows[token] · W[latent] for each pair, flat [pairs]; the value of a pair depends on no other pair."""
    pattern = torch.sparse_csr_tensor(
        indptr, latents, rows_bd.new_zeros(len(latents)), size=(len(rows_bd), len(W_nd)), check_invariants=False
    )
    product: Tensor = torch.sparse.sampled_addmm(pattern, rows_bd, W_nd.t(), beta=0.0)
    return product.values()


class Grouped(NamedTuple):
    """The pairs of some latents grouped by latent, in their order within each.

    offsets [latents + 1]: where each one's pairs begin; tokens, z, g_pre flat [pairs]; g_sums [latents]: of g_pre.
    """

    offsets: Tensor
    tokens: Tensor
    z: Tensor
    g_pre: Tensor
    g_sums: Tensor


def grouped(tokens: Tensor, latents: Tensor, z: Tensor, g_pre: Tensor, n: int, part: slice) -> Grouped:
    """Those of the flat pairs [pairs] whose latent is in a part of the n: compiled or in PyTorch, to the same bits."""
    library = compiled.library()
    if library is not None and z.dtype == torch.float32:
        return Grouped(*compiled.grouped(library, tokens, latents, z, g_pre, part))
    order, offsets = group_by_latent(latents, n, part)
    tokens, latents, z, g_pre = (of_pair.index_select(0, order) for of_pair in (tokens, latents, z, g_pre))
    g_sums = g_pre.new_zeros(part.stop - part.start).index_add_(0, latents.sub_(part.start), g_pre)
    return Grouped(offsets, tokens, z, g_pre, g_sums)


def group_by_latent(latents: Tensor, n: int, part: slice) -> tuple[Tensor, Tensor]:
    """The places of the pairs whose latent is in a part of the n, stably sorted by it, and where each one's begin."""
    if part.stop - part.start == n:
        return _sorted(latents, n), starts(torch.bincount(latents, minlength=n))
    mine = ((latents >= part.start) & (latents < part.stop)).nonzero()[:, 0]
    own = latents.index_select(0, mine).sub_(part.start)
    order, offsets = group_by_latent(own, part.stop - part.start, slice(0, part.stop - part.start))
    return mine.index_select(0, order), offsets


def _sorted(latents: Tensor, n: int) -> Tensor:
    """The stable order that sorts."""
    if n <= 1 << 16:  # NumPy sorts 16-bit integers by radix, some ten times faster than a comparison sort
        return torch.from_numpy(np.argsort(latents.numpy().astype(np.uint16), kind="stable"))
    return torch.sort(latents, stable=True).indices
