"""sae-lens: the `training_forward_pass` of its training SAEs, with their defaults."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from notes import Note
from references import Arrays
from references import topk as reference_topk
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from scenarios import D, N, Scenario
from tensors import array, gradients, set_parameters, tensor

UNRECTIFIED = (
    "No ReLU on the dead latents' attempt, which the paper's released code has: negative pre-activations take part."
)
NOTES = {
    "auxk_decoder": Note(UNRECTIFIED, difference={"rectified": False}),
    "auxk_encoder": Note(UNRECTIFIED, difference={"rectified": False}),
    "auxk_size": Note(
        UNRECTIFIED
        + " Not normalised, and weighted by dead / k_aux where fewer are dead: its choice, which its source "
        "states. Its default weight is 1, not 1/32.",
        difference={"rectified": False, "over": "rows", "fewer_weigh_less": True},
    ),
    "batch_topk_threshold": Note("A running mean from 0 that moves by 0.01: here after 1,500 steps."),
    "relu_l1": Note("L1 is always weighted by decoder norms: the next row."),
    "relu_decoder_norm": Note("With apply_b_dec_to_input off, as in the source."),
    "gated": Note(
        "The decoder learns from the auxiliary term too, where the paper holds it fixed; and L1 is weighted by decoder "
        "norms, which goes with decoder norms being free.",
        difference={"frozen": False, "by_norm": True},
    ),
    "jumprelu": Note("θ is kept in float32."),
    "unit_rows": Note("Norms are free; its TopK encoders scale pre-activations by them instead."),
    "tangent": Note("Norms are free."),
}
Made = tuple[Any, dict[str, torch.Tensor]]


def build(kind: Any, config: Any, s: Scenario, extra: dict[str, str] | None = None, **options: Any) -> Made:
    """A training SAE with the scenario's parameters, and those by our names; `extra` from our names to its own."""
    sae = kind(config(d_in=D, d_sae=N, dtype="float64", **options))
    names = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_pre": "b_dec", **(extra or {})}
    named = {ours: getattr(sae, theirs) for ours, theirs in names.items()}
    set_parameters(named, s.p, transposed=("W_enc",))
    return sae, named


def passed(sae: Any, s: Scenario, **coefficients: float) -> TrainStepOutput:
    dead = tensor(s.dead) if s.dead.any() else None
    return sae.training_forward_pass(TrainStepInput(tensor(s.x), coefficients, dead, 0, False))


def derived(made: Made, loss: torch.Tensor, out: TrainStepOutput | None = None) -> Arrays:
    x_hat = {"x_hat": array(out.sae_out)} if out else {}
    return x_hat | gradients(loss, made[1], transposed=("W_enc",))


def topk(s: Scenario) -> Arrays:
    made = build(TopKTrainingSAE, TopKTrainingSAEConfig, s, k=s.k)
    out = passed(made[0], s)
    return derived(made, out.loss, out)


def auxk(s: Scenario) -> Arrays:
    made = build(TopKTrainingSAE, TopKTrainingSAEConfig, s, k=s.k)
    term = passed(made[0], s).losses["auxiliary_reconstruction_loss"]
    return {"loss": array(term), **derived(made, term)}


def batch_topk(s: Scenario) -> Arrays:
    made = build(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, s, k=s.k)
    out = passed(made[0], s)
    return derived(made, out.loss, out)


def batch_topk_threshold(s: Scenario) -> Arrays:
    sae, _ = build(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, s, k=s.k)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for _ in range(1500):
            passed(sae, s)
        sae.save_inference_model(folder)
        z = SAE.load_from_disk(folder).encode(tensor(s.fresh))
    return {"theta": array(sae.topk_threshold), "z": array(z)}


def matryoshka(s: Scenario) -> Arrays:
    widths = list(s.prefixes)
    made = build(
        MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, s, k=s.k, matryoshka_widths=widths
    )
    return derived(made, passed(made[0], s).loss)


def relu_decoder_norm(s: Scenario) -> Arrays:
    made = build(StandardTrainingSAE, StandardTrainingSAEConfig, s, apply_b_dec_to_input=False)
    return derived(made, passed(made[0], s, l1=s.weight).loss)


def gated(s: Scenario) -> Arrays:
    own = {"b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
    made = build(GatedTrainingSAE, GatedTrainingSAEConfig, s, own)
    out = passed(made[0], s, l1=s.weight)
    return derived(made, out.loss, out)


def jump(s: Scenario) -> Made:
    own = {"theta": "threshold"}
    return build(JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, s, own, jumprelu_bandwidth=s.bandwidth)


def jumprelu(s: Scenario) -> Arrays:
    made = jump(s)
    out = passed(made[0], s, l0=0.0)
    return derived(made, out.loss, out)


def jumprelu_l0(s: Scenario) -> Arrays:
    made = jump(s)
    found = derived(made, passed(made[0], s, l0=1.0).losses["l0_loss"])
    return {name: found[name] for name in ("theta", "W_enc", "b_enc")}


def fvu(s: Scenario) -> Arrays:
    sums = ExplainedVarianceCalculator()
    sums.add_batch(tensor(reference_topk(s)["x_hat"]), tensor(s.x))
    return {"fvu": np.array(1 - sums.compute())}
