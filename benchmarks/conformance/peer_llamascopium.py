"""llamascopium: `SparseAutoEncoder.compute_loss`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llamascopium.metrics import ExplainedVarianceMetric
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from notes import Note
from references import Arrays
from references import topk as reference_topk
from scenarios import D, N, Scenario
from tensors import array, gradients, set_parameters, tensor

NOT_CENTRED = {"centred": False}
NOTES = {
    "topk": Note("Without b_pre before the encoder, here and below.", NOT_CENTRED),
    "topk_few": Note("", NOT_CENTRED),
    "auxk_decoder": Note("", NOT_CENTRED),
    "auxk_encoder": Note("", NOT_CENTRED),
    "auxk_living": Note(
        "The residual is no constant: what made it learns from the term too.", NOT_CENTRED, {"detached": False}
    ),
    "auxk_size": Note("A mean over rows, not normalised.", NOT_CENTRED, {"over": "rows"}),
    "batch_topk": Note("", NOT_CENTRED),
    "jumprelu": Note("ε is its window; 2 by default, as in Circuits Updates, January 2025.", NOT_CENTRED),
    "jumprelu_l0": Note("It trains θ with tanh penalties, as in Circuits Updates, January 2025."),
    "relu_l1": Note("L1 is always weighted by decoder norms: the next row."),
    "batch_topk_threshold": Note("It converts cross-layer transcoders only."),
    "unit_rows": Note("There to be called; its trainer scales norms at the start only, and leaves them free."),
    "tangent": Note("Norms are free."),
}
Made = tuple[SparseAutoEncoder, dict[str, torch.Tensor]]


def build(s: Scenario, act_fn: str) -> Made:
    config = SAEConfig(
        d_model=D, expansion_factor=N / D, hook_point_in="x", hook_point_out="x", act_fn=act_fn, top_k=s.k,
        norm_activation="inference", jumprelu_threshold_window=s.bandwidth, dtype=torch.float64,
    )  # fmt: skip
    sae = SparseAutoEncoder(config)
    named = {"W_enc": sae.W_E, "b_enc": sae.b_E, "W_dec": sae.W_D, "b_pre": sae.b_D}
    set_parameters(named, s.p, transposed=("W_enc",))
    return sae, named


def losses(made: Made, s: Scenario, **options: Any) -> dict[str, Any]:
    x = tensor(s.x)
    return made[0].compute_loss({"x": x, "tokens": torch.zeros(len(x))}, **options)


def trained(made: Made, s: Scenario, **options: Any) -> Arrays:
    out = losses(made, s, **options)
    return {"x_hat": array(out["reconstructed"]), **gradients(out["loss"], made[1], ("W_enc",))}


def topk(s: Scenario) -> Arrays:
    return trained(build(s, "topk"), s)


def auxk(s: Scenario) -> Arrays:
    made, dead = build(s, "topk"), tensor(s.dead)
    out = losses(made, s, auxk_coefficient=1.0, k_aux=s.k_aux, update_dead_statistics=lambda *_: dead)
    return {"loss": array(out["l_aux"]), **gradients(out["l_aux"], made[1], ("W_enc",))}


def batch_topk(s: Scenario) -> Arrays:
    return trained(build(s, "batchtopk"), s)


def relu_decoder_norm(s: Scenario) -> Arrays:
    found = trained(build(s, "relu"), s, sparsity_loss_type="power", l1_coefficient=s.weight)
    return {name: found[name] for name in ("W_enc", "b_enc", "W_dec", "b_pre")}


def jumprelu(s: Scenario) -> Arrays:
    sae, named = build(s, "jumprelu")
    theta = sae.activation_function.log_jumprelu_threshold
    theta.data = tensor(s.p["theta"]).log()
    found = trained((sae, {**named, "theta": theta}), s)
    return found | {"theta": found["theta"] / s.p["theta"]}


def unit_rows(s: Scenario) -> Arrays:
    sae, named = build(s, "relu")
    sae.transform_to_unit_decoder_norm()
    return {"W_dec": array(named["W_dec"])}


def fvu(s: Scenario) -> Arrays:
    metric = ExplainedVarianceMetric(build(s, "topk")[0])
    metric.update({"label": tensor(s.x), "reconstructed": tensor(reference_topk(s)["x_hat"])})
    return {"fvu": np.array(1 - metric.compute()["metrics/explained_variance"])}
