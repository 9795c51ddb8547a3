import torch

from sae_pipeline.kernels import Objective, Optimiser, Parameters, ReLU, TopK, TrainState

D, N, B = 12, 40, 64


def make_state(dtype=torch.float64, *, n=N, d=D, seed=1, average=True, silent=0, shift=0.7):
    """Random parameters; the first `silent` latents have a bias lowered by `shift`: they fire rarely or never."""
    g = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(n, d, generator=g, dtype=dtype) / d**0.5
    W_dec = torch.nn.functional.normalize(torch.randn(n, d, generator=g, dtype=dtype), dim=1)
    b_enc = 0.1 * torch.randn(n, generator=g, dtype=dtype)
    b_enc[:silent] -= shift
    b_pre = 0.1 * torch.randn(d, generator=g, dtype=dtype)
    return TrainState.start(Parameters(W_enc, b_enc, W_dec, b_pre), average=average)


def make_batch(step, dtype=torch.float64, *, b=B, d=D):
    g = torch.Generator().manual_seed(1000 + step)
    return torch.randn(b, d, generator=g, dtype=dtype) + 0.5


def topk_objective(k=4, auxk_k=3, dead_after_tokens=B, **kwargs):
    settings = {"loss_scale": 0.08, "auxk_k": auxk_k, "auxk_alpha": 1 / 32, "dead_after_tokens": dead_after_tokens}
    return Objective(TopK(k), **(settings | kwargs))


def relu_objective(**kwargs):
    settings = {"loss_scale": 0.08, "auxk_k": 0, "auxk_alpha": 0.0, "dead_after_tokens": 10 * B}
    return Objective(ReLU(), **(settings | kwargs))


def make_optimiser(**kwargs):
    return Optimiser(**({"betas": (0.9, 0.999), "eps": 6.25e-10, "ema": 0.99, "grad_clip": None} | kwargs))
