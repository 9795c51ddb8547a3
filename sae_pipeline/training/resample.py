"""Resampling of dead latents (Bricken et al. 2023, Towards Monosemanticity, appendix "Neuron Resampling")."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_pipeline.kernels import Objective, Optimiser, Parameters, TrainState
from sae_pipeline.kernels.reference import forward_pass

ENCODER_SHARE = 0.2  # of the mean norm of the living latents' encoder rows


@torch.no_grad()
def resample(
    state: TrainState,
    x_bd: Tensor,
    objective: Objective,
    optimiser: Optimiser,
    first_extra: dict[str, Tensor],
    seed: int,
) -> int:
    """Point every dead latent at a row that is badly reconstructed, and forget its past; in place.

    Rows are drawn from the batch with probability in proportion to their squared loss. The decoder row becomes the
    row's direction from b_pre, the encoder row the same at a fifth of the living latents' mean norm, the bias 0,
    `first_extra` says with what a recipe's own parameters start; moments are 0 and the running average starts anew.

    Returns:
        How many latents were dead. With none alive, or no error, nothing is done.
    """
    dead_n = state.fired.dead(objective.dead_after_tokens)
    error_b = (forward_pass(state.params, x_bd, objective).x_hat_bd - x_bd).square().sum(1).double()
    n_dead = int(dead_n.sum())
    if n_dead in (0, len(dead_n)) or float(error_b.sum()) == 0:
        return 0
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(error_b.square().cpu(), n_dead, replacement=True, generator=generator)
    direction_md = normalize(x_bd[chosen.to(x_bd.device)] - state.params.b_pre, dim=1)
    norm = ENCODER_SHARE * state.params.W_enc[~dead_n].norm(dim=1).mean()
    fresh = {"W_enc": norm * direction_md, "b_enc": torch.zeros_like(state.params.b_enc[dead_n]), "W_dec": direction_md}
    fresh |= {
        name: tensor.to(x_bd.device)[dead_n] for name, tensor in first_extra.items() if len(tensor) == len(dead_n)
    }
    for name, rows in fresh.items():
        _restart(state, name, dead_n, rows, optimiser)
    state.fired.tokens_since_fired[dead_n] = 0
    return n_dead


def _restart(state: TrainState, name: str, dead_n: Tensor, rows: Tensor, optimiser: Optimiser) -> None:
    def of(group: Parameters) -> Tensor:
        return group.named()[name]

    of(state.params)[dead_n] = rows
    of(state.first)[dead_n] = 0.0
    of(state.second)[dead_n] = 0.0
    if state.average is not None and optimiser.ema is not None:
        # As if it had always been so: what `averaged` divides by is multiplied in.
        of(state.average)[dead_n] = rows * (1.0 - optimiser.ema**state.updates)
