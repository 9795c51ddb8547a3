"""Activation functions: dense and differentiable for the reference, as a flat support for the sparse step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

GROUP = 8  # columns a group maximum stands for in `positive_topk`
MAX_SHARE = 5  # a support of more than 1/5 of the entries gains nothing from being treated as sparse (measured)


class Support(NamedTuple):
    """The (token, latent) pairs that may be active, ordered by token: `indptr` [b+1], the others flat [pairs]."""

    indptr: Tensor
    tokens: Tensor
    latents: Tensor
    values: Tensor


class Activation(Protocol):
    """z = activation(π): what stands between pre-activations π and latents z ≥ 0."""

    def __call__(self, pre_bn: Tensor) -> Tensor:
        """Latents [b, n], differentiable."""
        ...

    def support(self, pre_bn: Tensor) -> Support | None:
        """The same as a flat support, not differentiable; None where too many entries are active to gain by it."""
        ...


@dataclass(frozen=True)
class TopK:
    """z = ReLU(TopK(π)): at most k active latents a token (Gao et al. 2024 §2.3, ReLU as in its code)."""

    k: int

    def __call__(self, pre_bn: Tensor) -> Tensor:
        """Latents [b, n]; the gradient is 1 on the selected positive entries and 0 elsewhere, which is exact."""
        values, indices = pre_bn.topk(self.k, dim=1, sorted=False)
        return torch.zeros_like(pre_bn).scatter(1, indices, values.relu())

    def support(self, pre_bn: Tensor) -> Support:
        """k pairs a token; values 0 fill up where fewer are positive."""
        values, indices = positive_topk(pre_bn, self.k)
        b = len(pre_bn)
        tokens = torch.arange(b, device=pre_bn.device).repeat_interleave(self.k)
        indptr = torch.arange(0, b * self.k + 1, self.k, device=pre_bn.device)
        return Support(indptr, tokens, indices.flatten(), values.relu().flatten())


@dataclass(frozen=True)
class ReLU:
    """z = max(π, 0)."""

    def __call__(self, pre_bn: Tensor) -> Tensor:
        """Latents [b, n]."""
        return pre_bn.relu()

    def support(self, pre_bn: Tensor) -> Support | None:
        """The positive pairs; None if they are more than a fifth of all."""
        positive = pre_bn > 0
        counts_b = positive.count_nonzero(1)
        if int(counts_b.sum()) * MAX_SHARE > pre_bn.numel():
            return None
        tokens, latents = positive.nonzero(as_tuple=True)
        indptr = torch.nn.functional.pad(counts_b.cumsum(0), (1, 0))
        return Support(indptr, tokens, latents, pre_bn[tokens, latents])


def positive_topk(pre_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices [b, k], unsorted, of the k largest entries of each row, exact wherever they are positive.

    Which of the non-positive entries fill up a row is left open: a ReLU makes them all 0. Two facts make it faster
    than `torch.topk`: positive floats order as their bits do, and integers compare without a test for NaN; and the
    k largest of a row lie in the k groups of largest maximum.
    """
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}[pre_bn.dtype]
    keys = pre_bn.contiguous().view(bits)
    b, n = keys.shape
    if n < 32 * k or n % GROUP:
        indices = keys.topk(k, dim=1, sorted=False).indices
    else:
        stride = n // GROUP  # column c belongs to group c mod stride: maxima of whole cache lines, not within one
        groups = keys.view(b, GROUP, stride).amax(1).topk(k, dim=1, sorted=False).indices
        members = torch.arange(0, n, stride, device=keys.device)
        candidates = (groups[:, :, None] + members).flatten(1)
        best = keys.gather(1, candidates).topk(k, dim=1, sorted=False).indices
        indices = candidates.gather(1, best)
    return pre_bn.gather(1, indices), indices
