"""Which latents fire, how often, and for how long they have been silent. A latent fires on a token when z > 0."""

from __future__ import annotations

import torch
from torch import Tensor


class Density:
    """Counts on how many tokens each of n latents fired."""

    def __init__(self, n: int, device: torch.device | str = "cpu") -> None:
        self.counts_n = torch.zeros(n, dtype=torch.int64, device=device)
        self.tokens = 0

    def update(self, latents: Tensor, n_tokens: int) -> None:
        """Add a batch: the latents that fired, flat int64, one entry for each (token, latent); tokens it held."""
        self.counts_n += torch.bincount(latents, minlength=len(self.counts_n))
        self.tokens += n_tokens

    def density(self) -> Tensor:
        """Share of the tokens on which each latent fired, float64 [n]; NaN before any token."""
        return self.counts_n.double() / (self.tokens or float("nan"))

    def silent(self) -> Tensor:
        """Mask [n] of the latents that fired on none of the tokens."""
        return self.counts_n == 0

    @property
    def silent_bound(self) -> float:
        """95 % upper bound of the true density of a silent latent: 3/T (rule of three)."""
        return 3.0 / self.tokens if self.tokens else float("nan")


class Fired:
    """Training tokens since each latent last fired, at the resolution of a batch; the one definition of dead."""

    def __init__(self, n: int, device: torch.device | str = "cpu") -> None:
        self.tokens_since_fired = torch.zeros(n, dtype=torch.int64, device=device)

    def update(self, latents: Tensor, n_tokens: int) -> None:
        """Add a batch of `n_tokens` in which `latents` (flat int64, repetitions allowed) fired."""
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired.index_fill_(0, latents, 0)

    def update_mask(self, fired_n: Tensor, n_tokens: Tensor) -> None:
        """The same from a mask [n] of the latents that fired and a 0-d count, neither of which is read by the host."""
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired.masked_fill_(fired_n, 0)

    def dead(self, after_tokens: int) -> Tensor:
        """Mask [n] of the latents that did not fire in the last `after_tokens` tokens (nor, at first, ever)."""
        return self.tokens_since_fired >= after_tokens
