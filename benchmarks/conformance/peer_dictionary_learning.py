"""dictionary-learning: the `loss` of its trainers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dictionary_learning.evaluation import evaluate
from dictionary_learning.trainers import (
    BatchTopKTrainer,
    GatedSAETrainer,
    JumpReluTrainer,
    StandardTrainer,
    TopKTrainer,
)
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
from dictionary_learning.trainers.trainer import (
    remove_gradient_parallel_to_decoder_directions,
    set_decoder_norm_to_unit_norm,
)
from notes import Note
from references import Arrays
from references import topk as reference_topk
from scenarios import D, N, Scenario
from tensors import array, gradients, set_parameters, tensor

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec")} | {"b_pre": "b_dec"}
NOTES = {
    "auxk_decoder": Note("AuxK is computed in float32."),
    "matryoshka": Note(
        "Weights of 1/G for G groups, and then a mean over groups: with its defaults 1/G² of the paper's sum, so AuxK "
        "counts G times more beside it than beside a mean."
    ),
    "relu_decoder_norm": Note("b_pre is subtracted before the encoder.", convention={"centred": True}),
    "jumprelu": Note("Without b_pre before the encoder; θ itself is trained, not its logarithm.", {"centred": False}),
    "jumprelu_l0": Note(
        "The step is taken of latents that the threshold has already cut: those just below it, which are 0 then, pass "
        "θ no gradient. (L0 is compared in its form (L0/target − 1)².)",
        convention={"centred": False, "to_target": True},
        difference={"of_kept": True},
    ),
    "fvu": Note(
        "frac_variance_explained takes the variance of the error, not its square: an error common to all rows does not "
        "count.",
        difference={"around_mean": True},
    ),
}
Made = tuple[Any, dict[str, torch.Tensor], tuple[str, ...]]


def build(trainer_class: Any, s: Scenario, names: dict[str, str], transposed: tuple[str, ...], **options: Any) -> Made:
    """A trainer with the scenario's parameters, and those by our names; `names` from our names to its own."""
    trainer = trainer_class(
        steps=10**6, activation_dim=D, dict_size=N, layer=0, lm_name="none", device="cpu", **options
    )
    trainer.ae.double()
    named = {ours: trainer.ae.get_parameter(theirs) for ours, theirs in names.items()}
    set_parameters(named, s.p, transposed)
    return trainer, named, transposed


def linear(trainer_class: Any, s: Scenario, b_pre: str = "b_dec", more: dict[str, str] | None = None, **o: Any) -> Made:
    """Those whose layers are `Linear`s."""
    return build(trainer_class, s, LINEAR | {"b_pre": b_pre} | (more or {}), ("W_dec",), **o)


def trained(made: Made, s: Scenario) -> Arrays:
    trainer, named, transposed = made
    return gradients(trainer.loss(tensor(s.x), step=0), named, transposed)


def reconstructed(made: Made, s: Scenario) -> Arrays:
    return {"x_hat": array(made[0].loss(tensor(s.x), step=0, logging=True).x_hat)}


def topk(s: Scenario) -> Arrays:
    made = linear(TopKTrainer, s, k=s.k)
    return trained(made, s) | reconstructed(made, s)


def auxk(s: Scenario) -> Arrays:
    trainer, named, transposed = linear(TopKTrainer, s, k=s.k)
    trainer.num_tokens_since_fired[tensor(s.dead)] = trainer.dead_feature_threshold
    x = tensor(s.x)
    logged = trainer.loss(x, step=0, logging=True)
    error = (x - logged.x_hat).detach()
    term = trainer.get_auxiliary_loss(error, trainer.ae.encode(x, return_topk=True)[3])
    return {"loss": array(term), **gradients(term, named, transposed)}


def batch_topk(s: Scenario) -> Arrays:
    made = linear(BatchTopKTrainer, s, k=s.k)
    return trained(made, s) | reconstructed(made, s)


def batch_topk_threshold(s: Scenario) -> Arrays:
    trainer, _, _ = linear(BatchTopKTrainer, s, k=s.k)
    for step in range(3):
        trainer.loss(tensor(s.x), step=trainer.threshold_start_step + 1 + step)
    return {"theta": array(trainer.ae.threshold), "z": array(trainer.ae.encode(tensor(s.fresh)))}


def matryoshka(s: Scenario) -> Arrays:
    fractions = [width / N for width in np.diff((0, *s.prefixes))]
    found = trained(build(MatryoshkaBatchTopKTrainer, s, PLAIN, ("W_enc",), k=s.k, group_fractions=fractions), s)
    return {name: len(fractions) ** 2 * value for name, value in found.items()}


def penalised(trainer_class: Any, s: Scenario, b_pre: str = "bias", more: dict[str, str] | None = None) -> Made:
    return linear(trainer_class, s, b_pre, more, l1_penalty=s.weight, sparsity_warmup_steps=None)


def relu_l1(s: Scenario) -> Arrays:
    return trained(penalised(StandardTrainer, s), s)


def relu_decoder_norm(s: Scenario) -> Arrays:
    return trained(penalised(StandardTrainerAprilUpdate, s), s)


def gated(s: Scenario) -> Arrays:
    own = {"b_enc": "gate_bias", "r_mag": "r_mag", "b_mag": "mag_bias"}
    made = penalised(GatedSAETrainer, s, "decoder_bias", own)
    return trained(made, s) | reconstructed(made, s)


def jump(s: Scenario, weight: float) -> Arrays:
    options = {"bandwidth": s.bandwidth, "sparsity_penalty": weight, "target_l0": s.target_l0}
    made = build(JumpReluTrainer, s, PLAIN | {"theta": "threshold"}, ("W_enc",), sparsity_warmup_steps=None, **options)
    return trained(made, s) | {"x_hat": array(made[0].ae(tensor(s.x)))}


def jumprelu(s: Scenario) -> Arrays:
    return jump(s, 0.0)


def jumprelu_l0(s: Scenario) -> Arrays:
    without, found = jump(s, 0.0), jump(s, 1.0)
    return {name: found[name] - without[name] for name in ("theta", "W_enc", "b_enc")}


def unit_rows(s: Scenario) -> Arrays:
    return {"W_dec": array(set_decoder_norm_to_unit_norm(tensor(s.p["W_dec"].T), D, N).T)}


def tangent(s: Scenario) -> Arrays:
    W_dec, gradient = tensor(s.p["W_dec"].T), tensor(s.gradient.T)
    return {"W_dec": array(remove_gradient_parallel_to_decoder_directions(W_dec, gradient, D, N).T)}


class Given:
    """A dictionary that reconstructs what it is told to."""

    dict_size, activation_dim = N, D

    def __init__(self, x_hat: torch.Tensor) -> None:
        self.x_hat = x_hat

    def __call__(self, x: torch.Tensor, output_features: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction and latents, of which nothing is asked."""
        return self.x_hat, torch.ones(len(x), N)


def fvu(s: Scenario) -> Arrays:
    found = evaluate(Given(tensor(reference_topk(s)["x_hat"])), iter([tensor(s.x)]))
    return {"fvu": np.array(1 - found["frac_variance_explained"])}
