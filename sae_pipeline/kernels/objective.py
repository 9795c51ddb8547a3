"""What a training step minimises, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from sae_pipeline.kernels.activations import Activation
from sae_pipeline.kernels.state import Parameters


@dataclass(frozen=True)
class Pass:
    """What a recipe makes of one batch of rows [b, d], differentiable in its parameters.

    pre_bn: pre-activations, among which AuxK selects. z_bn: latents; a latent fired where they are positive. x_hat_bd:
    the reconstruction whose error is reported. loss: scalar, what is minimised beside penalty and AuxK. penalty:
    scalar, unweighted. observed: values that parameters without gradient follow by a running mean.
    """

    pre_bn: Tensor
    z_bn: Tensor
    x_hat_bd: Tensor
    loss: Tensor
    penalty: Tensor
    observed: dict[str, Tensor] = field(default_factory=dict)


Forward = Callable[[Parameters, Tensor, float], Pass]
"""A recipe's training pass, from its parameters, normalised rows [b, d] and the loss scale."""


@dataclass(frozen=True)
class Objective:
    """L = s · mean_b ‖x̂−x‖² + l1 · √s · mean_b Σ z + auxk_alpha · AuxK, with s = `loss_scale`.

    s is one over the total variance E‖x−x̄‖² of the dataset, fixed for the run: the first term is the NMSE in
    expectation, and l1 means the same whatever the scale of the data (as if it were scaled to unit total variance).
    AuxK is Gao et al. 2024 §A.2; it is off where `auxk_k` is 0. A latent is dead once it has not fired in
    `dead_after_tokens` training tokens, the present batch included.

    A recipe of another form gives `forward` in place of `activation`; its loss and its penalty take the places of the
    first two terms. `unit_rows`: whether decoder rows are held at unit norm. `trains`: the parameters that change;
    None: all.
    """

    activation: Activation | None
    loss_scale: float
    auxk_k: int
    auxk_alpha: float
    dead_after_tokens: int
    forward: Forward | None = None
    unit_rows: bool = True
    trains: frozenset[str] | None = None


class Losses(NamedTuple):
    """Unweighted terms of one step as scalars on the device: NMSE-like, AuxK, the sparsity penalty, and mean L0."""

    reconstruction: Tensor
    auxk: Tensor
    l1: Tensor
    l0: Tensor
