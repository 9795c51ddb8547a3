"""What the step asks of its kernels: one signature for Triton and for the PyTorch references in `plain`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from sae_pipeline.kernels.optimiser import Optimiser


class Subset(NamedTuple):
    """Some of the n latents: the first `length` (0-d, on the device) entries of `latents` [n], ascending."""

    latents: Tensor
    length: Tensor


class Decoded(NamedTuple):
    """error_bd = Σ z_j W_dec[j] − target; products_bk = error · W_dec[j] for each pair; squares_b = ‖error‖²."""

    error_bd: Tensor
    products_bk: Tensor
    squares_b: Tensor


class Pairs(NamedTuple):
    """(token, latent) pairs grouped by latent.

    latents [pairs]: ascending; n is an empty slot, at the end. tokens [pairs]. offsets [n+1]: where each latent begins.
    """

    latents: Tensor
    tokens: Tensor
    offsets: Tensor


class Slot(NamedTuple):
    """One parameter with its Adam moments and, where there is one, its running average."""

    parameter: Tensor
    first: Tensor
    second: Tensor
    average: Tensor | None


class Scalars(NamedTuple):
    """Places in the vector of what a step finds out on the device: the update kernels read it there.

    keep: 0 makes every update a no-op. step_size: lr / (1 − β₁ᵗ). root: √(1 − β₂ᵗ). factor: of clipping.
    """

    keep: int = 0
    step_size: int = 1
    root: int = 2
    factor: int = 3


class Select(Protocol):
    """The k largest positive pre-activations of each token."""

    def __call__(
        self, xc_bd: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, subset: Subset | None
    ) -> tuple[Tensor, Tensor]:
        """Latents (int32) and values [b, k] among all latents or a subset; of equal values the lower latent first.

        Slots are in no particular order. Those that no positive value fills hold latent n and value 0. A row with a
        score that is not a number has such values only.
        """
        ...


class UpdateRows(Protocol):
    """One Adam step on the rows of a weight matrix."""

    def __call__(
        self,
        slot: Slot,
        pairs: Pairs,
        weights: Tensor,
        source: Tensor,
        scalars: Tensor,
        constants: Optimiser,
        unit: bool,
    ) -> None:
        """In place, with the gradient g[j] = Σ over pairs of latent j of weights · source[token mod len(source)].

        Where `unit`, g loses its component along the unit row before, and the row is brought to unit norm after.
        """
        ...


class Kernels(NamedTuple):
    """The operations of a step.

    decode(latents, values, W_dec, target, the subset the latents are of).
    segment_sums(values of pairs, offsets): [n].
    squares(pairs, weights, source, unit rows or None): ‖g[j]‖² of the gradient rows that `update_rows` makes, [n].
    update_vector(slot, gradient, scalars, constants): one Adam step on a vector.
    """

    select: Select
    decode: Callable[[Tensor, Tensor, Tensor, Tensor, Subset | None], Decoded]
    segment_sums: Callable[[Tensor, Tensor], Tensor]
    squares: Callable[[Pairs, Tensor, Tensor, Tensor | None], Tensor]
    update_rows: UpdateRows
    update_vector: Callable[[Slot, Tensor, Tensor, Optimiser], None]
