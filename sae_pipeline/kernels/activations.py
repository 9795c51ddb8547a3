"""Activation functions: dense and differentiable for the reference, as a flat support for the sparse step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_pipeline.kernels.crew import Crew
from sae_pipeline.kernels.pairs import Support
from sae_pipeline.kernels.precision import screening_dtype
from sae_pipeline.kernels.screening import Screen, chunks_of_rows, make_screen, topk_support
from sae_pipeline.kernels.state import Parameters

MAX_SHARE = 5  # a support of more than 1/5 of the entries gains nothing from being treated as sparse (measured)


class Activation(Protocol):
    """z = activation(π): what stands between pre-activations π and latents z ≥ 0."""

    def __call__(self, pre_bn: Tensor) -> Tensor:
        """Latents [b, n], differentiable."""
        ...

    def prepare(self, params: Parameters, crew: Crew) -> Any:
        """What `support` may be given for any rows while the parameters stay as they are."""
        ...

    def support(self, params: Parameters, xc_bd: Tensor, prepared: Any = None) -> Support | None:
        """The positive latents of rows x − b_pre [b, d] with π = W_enc (x − b_pre) + b_enc, not differentiable.

        None where too many are positive to gain by a sparse step, or where they cannot be told.
        """
        ...


@dataclass(frozen=True)
class TopK:
    """z = ReLU(TopK(π)): at most k active latents a token (Gao et al. 2024 §2.3, ReLU as in its code)."""

    k: int

    def __call__(self, pre_bn: Tensor) -> Tensor:
        """Latents [b, n]; the gradient is 1 on the selected positive entries and 0 elsewhere, which is exact."""
        values, indices = pre_bn.topk(self.k, dim=1, sorted=False)
        return torch.zeros_like(pre_bn).scatter(1, indices, values.relu())

    def prepare(self, params: Parameters, crew: Crew) -> Screen:
        """The screen that is tried first; its weights lie in memory that the next call on this thread takes over."""
        return make_screen(params, screening_dtype(params.W_enc.dtype), crew)

    def support(self, params: Parameters, xc_bd: Tensor, prepared: Screen | None = None) -> Support | None:
        """At most k pairs a token; None where rows or parameters are not finite."""
        return topk_support(params, xc_bd, self.k, prepared)


@dataclass(frozen=True)
class ReLU:
    """z = max(π, 0)."""

    def __call__(self, pre_bn: Tensor) -> Tensor:
        """Latents [b, n]."""
        return pre_bn.relu()

    def prepare(self, params: Parameters, crew: Crew) -> None:
        """Nothing."""

    def support(self, params: Parameters, xc_bd: Tensor, prepared: None = None) -> Support | None:
        """The positive pairs; None if they are more than a fifth of all in some chunk of rows."""
        counts, latents, values = [], [], []
        for rows in chunks_of_rows(xc_bd, len(params.W_enc)):
            pre_bn = torch.nn.functional.linear(xc_bd[rows], params.W_enc, params.b_enc)
            positive = pre_bn > 0
            counts.append(positive.sum(1))
            if int(counts[-1].sum()) * MAX_SHARE > pre_bn.numel():
                return None
            tokens, chosen = positive.nonzero(as_tuple=True)
            latents.append(chosen)
            values.append(pre_bn[tokens, chosen])
        return Support.of(torch.cat(counts), torch.cat(latents), torch.cat(values))
