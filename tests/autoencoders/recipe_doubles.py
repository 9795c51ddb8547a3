"""What the tests of the recipes share: parameters in float64, and the recipes' settings."""

import torch

from sae_pipeline.autoencoders.recipes import RECIPES, Settings
from sae_pipeline.kernels import Objective, Parameters, TrainState
from sae_pipeline.kernels.reference import losses_and_gradients

B, D, N, K = 12, 6, 24, 3
SCALE, WEIGHT = 1.7, 0.3
PREFIXES = (4, 10, N)


def settings(name, **options):
    return Settings(N, D, K, PREFIXES, {**RECIPES[name].options, **options})


def parameters(name, seed=0, **options):
    """Not those of the start: every parameter away from 0, decoder rows unit unless the recipe frees them."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    W_dec = torch.nn.functional.normalize(draw(N, D), dim=1)
    if not RECIPES[name].unit_rows:
        W_dec = W_dec * (0.5 + torch.rand(N, 1, generator=g, dtype=torch.float64))
    shared = Parameters(draw(N, D) / D**0.5, 0.1 * draw(N), W_dec, 0.1 * draw(D))
    extra = RECIPES[name].start(shared, settings(name, **options), SCALE).extra
    moved = {key: tensor + 0.2 * draw(*tensor.shape) for key, tensor in extra.items()}
    if "threshold" in moved:
        moved["threshold"].abs_()
    return Parameters(shared.W_enc, shared.b_enc, shared.W_dec, shared.b_pre, moved)


def batch(seed=7, b=B):
    return torch.randn(b, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(name, auxk_k=0, dead_after=10**9, **options):
    recipe, made = RECIPES[name], settings(name, **options)
    return Objective(
        recipe.activation(made) if recipe.activation else None,
        SCALE,
        auxk_k,
        1 / 32,
        dead_after,
        recipe.forward(made) if recipe.forward else None,
        recipe.unit_rows,
        recipe.trains,
    )


def gradients(name, params, x, weight=WEIGHT, **options):
    """Loss terms, gradients and what was observed, by the step that trains."""
    state = TrainState.start(params, average=False)
    losses, (found, observed) = losses_and_gradients(state, x, objective(name, **options), weight)
    return losses, found.named(), observed
