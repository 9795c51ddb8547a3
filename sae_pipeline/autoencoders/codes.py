"""Sparse codes of a batch of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """Active latents and their values z > 0, in one of two layouts.

    Fixed width (`indptr` None): indices int64 [b, K] and values [b, K], each row sorted by falling value and filled up
    with value 0. Ragged (CSR): indices and values flat [pairs], token t's at indptr[t]:indptr[t+1], indptr int64 [b+1].
    """

    indices: Tensor
    values: Tensor
    indptr: Tensor | None = None

    @classmethod
    def ragged(cls, z_bn: Tensor) -> Codes:
        """CSR codes of dense latents z ≥ 0 [b, n]."""
        active = z_bn > 0
        tokens, latents = active.nonzero(as_tuple=True)
        indptr = torch.nn.functional.pad(active.sum(1).cumsum(0), (1, 0))
        return cls(latents, z_bn[tokens, latents], indptr)

    def __len__(self) -> int:
        return len(self.indices) if self.indptr is None else len(self.indptr) - 1

    @property
    def l0_b(self) -> Tensor:
        """Active latents of each token, int64 [b]."""
        return (self.values > 0).sum(1) if self.indptr is None else self.indptr.diff()

    @property
    def fired(self) -> Tensor:
        """The latents that fired, flat int64, one entry for each active (token, latent)."""
        return self.indices[self.values > 0]

    def dense(self, n: int) -> Tensor:
        """Latents [b, n]."""
        z_bn = self.values.new_zeros(len(self), n)
        if self.indptr is None:
            return z_bn.scatter_(1, self.indices, self.values)
        tokens = torch.arange(len(self), device=self.indices.device).repeat_interleave(self.l0_b)
        z_bn[tokens, self.indices] = self.values
        return z_bn
