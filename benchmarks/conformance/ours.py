"""sae_pipeline itself, by its plain training step, which tests hold the faster ones equal to."""

from __future__ import annotations

import numpy as np
import torch
from notes import Note
from references import Arrays
from references import topk as reference_topk
from scenarios import D, N, Scenario
from tensors import array, tensor

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.autoencoders.recipes import RECIPES, Settings
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Objective, Optimiser, Parameters, TrainState
from sae_pipeline.kernels.optimiser import tangent as project
from sae_pipeline.kernels.optimiser import update_rows
from sae_pipeline.kernels.reference import forward_pass, losses_and_gradients, step
from sae_pipeline.measures import Reconstruction

NOTES = {"matryoshka": Note("The mean over prefixes; the paper's sum is that times their number.")}
OPTIMISER = Optimiser(betas=(0.9, 0.999), eps=1e-8, ema=None, grad_clip=None)


def shared(s: Scenario, **extra: torch.Tensor) -> Parameters:
    return Parameters.of({n: tensor(s.p[n]) for n in ("W_enc", "b_enc", "W_dec", "b_pre")} | extra)


def objective(recipe: str, s: Scenario, auxk_k: int = 0) -> Objective:
    made, options = RECIPES[recipe], {"bandwidth": s.bandwidth} if recipe == "jumprelu" else {}
    settings = Settings(N, D, s.k, s.prefixes, {**made.options, **options})
    activation = made.activation(settings) if made.activation else None
    forward = made.forward(settings) if made.forward else None
    return Objective(activation, 1.0, auxk_k, 1.0, 1000, forward, made.unit_rows)


def trained(recipe: str, s: Scenario, params: Parameters, weight: float = 0.0, auxk_k: int = 0) -> Arrays:
    """Gradients of one training step, x̂ and the AuxK term."""
    state, goal = TrainState.start(params, average=False), objective(recipe, s, auxk_k)
    state.fired.tokens_since_fired += 1000 * tensor(s.dead)
    result = losses_and_gradients(state, tensor(s.x), goal, weight)
    assert result is not None
    losses, (found, _) = result
    x_hat = forward_pass(params, tensor(s.x), goal).x_hat_bd
    return {n: array(g) for n, g in found.named().items()} | {"x_hat": array(x_hat), "loss": array(losses.auxk)}


def only(arrays: Arrays, *names: str) -> Arrays:
    return {name: arrays[name] for name in ("W_enc", "b_enc", "W_dec", "b_pre", *names)}


def topk(s: Scenario) -> Arrays:
    return only(trained("topk", s, shared(s)), "x_hat")


def multi_topk(s: Scenario) -> Arrays:
    return only(trained("multi-topk", s, shared(s)))


def auxk(s: Scenario) -> Arrays:
    without, found = (trained("topk", s, shared(s), auxk_k=k) for k in (0, s.k_aux))
    return {name: found[name] - without[name] for name in ("W_enc", "b_enc", "W_dec")} | {"loss": found["loss"]}


def batch_topk(s: Scenario) -> Arrays:
    return only(trained("batch-topk", s, shared(s, cut=torch.zeros(1, dtype=torch.float64))), "x_hat")


def batch_topk_threshold(s: Scenario) -> Arrays:
    state = TrainState.start(shared(s, cut=torch.zeros(1, dtype=torch.float64)), average=False)
    for _ in range(3):
        step(state, tensor(s.x), objective("batch-topk", s), OPTIMISER, lr=0.0, l1=0.0)
    saved = RECIPES["batch-topk"].fold(state.params)
    codes = Autoencoder(AutoencoderConfig("batch-topk", N, D), saved, Normaliser("none", D)).encode(tensor(s.fresh))
    return {"theta": array(saved.extra["threshold"][0]), "z": array(codes.dense(N))}


def matryoshka(s: Scenario) -> Arrays:
    found = only(trained("matryoshka", s, shared(s, cut=torch.zeros(1, dtype=torch.float64))))
    return {name: len(s.prefixes) * value for name, value in found.items()}


def relu_l1(s: Scenario) -> Arrays:
    return only(trained("relu", s, shared(s), s.weight))


def relu_decoder_norm(s: Scenario) -> Arrays:
    return only(trained("relu-decoder-norm", s, shared(s), s.weight))


def gated(s: Scenario) -> Arrays:
    params = shared(s, r_mag=tensor(s.p["r_mag"]), b_mag=tensor(s.p["b_mag"]))
    return only(trained("gated", s, params, s.weight), "x_hat", "r_mag", "b_mag")


def jump(s: Scenario, weight: float) -> Arrays:
    found = trained("jumprelu", s, shared(s, log_threshold=tensor(s.p["theta"]).log()), weight)
    return found | {"theta": found["log_threshold"] / s.p["theta"]}


def jumprelu(s: Scenario) -> Arrays:
    return only(jump(s, 0.0), "x_hat", "theta")


def jumprelu_l0(s: Scenario) -> Arrays:
    without, found = jump(s, 0.0), jump(s, 1.0)
    return {name: found[name] - without[name] for name in ("theta", "W_enc", "b_enc")}


def unit_rows(s: Scenario) -> Arrays:
    state = TrainState.start(shared(s), average=False)
    state.updates = 1
    update_rows(state, "W_dec", slice(None), torch.zeros(N, D).double(), OPTIMISER, 0.0, unit=True)
    return {"W_dec": array(state.params.W_dec)}


def tangent(s: Scenario) -> Arrays:
    return {"W_dec": array(project(tensor(s.gradient), tensor(s.p["W_dec"])))}


def fvu(s: Scenario) -> Arrays:
    sums = Reconstruction(D)
    sums.update(tensor(s.x), tensor(reference_topk(s)["x_hat"]))
    return {"fvu": np.array(sums.nmse)}
