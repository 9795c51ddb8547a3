"""eai-sparsify: `SparseCoder.forward`, and the loss as its trainer adds it up."""

from __future__ import annotations

import torch
from notes import Note
from references import Arrays
from scenarios import D, N, Scenario
from sparsify import SparseCoder, SparseCoderConfig
from tensors import array, gradients, set_parameters, tensor

NO_ENCODER = "The backward pass of its fused encoder ignores the gradient by the pre-activations; "
NOTES = {
    "topk_few": Note(
        "A selected latent that the ReLU sets to 0 passes a gradient on to the encoder: the backward pass of its fused "
        "encoder is not the derivative of its forward pass there.",
        difference={"through_zero": True},
    ),
    "multi_topk": Note(
        NO_ENCODER + "the term of 4k is made from those, and trains decoder and biases only.",
        difference={"encoder_of_wide": False},
    ),
    "auxk_encoder": Note(
        NO_ENCODER + "the term is made from those: the gradient by the encoder of the dead is 0.",
        difference={"encoder_learns": False},
    ),
    "auxk_size": Note(
        "Divided by the variation of the data, not of the residual, and weighted by dead / k_aux where fewer are dead: "
        "its choice, which its source states. Off by default.",
        difference={"over": "total", "fewer_weigh_less": True},
    ),
    "batch_topk": Note("It has GroupMax, the largest of each of k groups, for the same end."),
}


def coder(s: Scenario, multi_topk: bool = False) -> tuple[SparseCoder, dict[str, torch.Tensor]]:
    config = SparseCoderConfig(num_latents=N, k=s.k, multi_topk=multi_topk)
    made = SparseCoder(D, config, dtype=torch.float64)
    named = {"W_enc": made.encoder.weight, "b_enc": made.encoder.bias, "W_dec": made.W_dec, "b_pre": made.b_dec}
    set_parameters(named, s.p)
    return made, named


def per_row(s: Scenario) -> float:
    """From a loss over the variation of the data to one a row."""
    return float(((s.x - s.x.mean(0)) ** 2).sum() / len(s.x))


def topk(s: Scenario) -> Arrays:
    made, named = coder(s)
    out = made(tensor(s.x))
    return {"x_hat": array(out.sae_out), **gradients(per_row(s) * out.fvu, named)}


def multi_topk(s: Scenario) -> Arrays:
    made, named = coder(s, multi_topk=True)
    out = made(tensor(s.x))
    return gradients(per_row(s) * (out.fvu + out.multi_topk_fvu / 8), named)


def auxk(s: Scenario) -> Arrays:
    made, named = coder(s)
    term = made(tensor(s.x), dead_mask=tensor(s.dead)).auxk_loss
    return {"loss": array(term), **gradients(term, named)}


def unit_rows(s: Scenario) -> Arrays:
    made, named = coder(s)
    made.set_decoder_norm_to_unit_norm()
    return {"W_dec": array(named["W_dec"])}


def tangent(s: Scenario) -> Arrays:
    made, named = coder(s)
    named["W_dec"].grad = tensor(s.gradient)
    made.remove_gradient_parallel_to_decoder_directions()
    return {"W_dec": array(named["W_dec"].grad)}


def fvu(s: Scenario) -> Arrays:
    return {"fvu": array(coder(s)[0](tensor(s.x)).fvu)}
