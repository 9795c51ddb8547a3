"""overcomplete: its SAEs in training mode with its loss functions, in the "linear" encoder.

It has no b_pre: the rows are given to it without. Its losses are means over coordinates: times D here. Only its image
models need torchvision; where that does not load, an empty module stands in.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from notes import Note
from references import Arrays
from references import topk as reference_topk
from scenarios import D, N, Scenario
from tensors import array, gradients, set_parameters, tensor

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    sys.modules["torchvision"] = ModuleType("torchvision")
    sys.modules["torchvision"].transforms = None  # type: ignore[attr-defined]

from overcomplete.metrics import r2_score
from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, TopKSAE, heaviside, mse_l1
from overcomplete.sae.losses import top_k_auxiliary_loss

ALL = (
    "As its docstring says, it does not ask which latents are dead: half of all, those not selected that come next, "
    "attempt the residual; "
)
TWICE = (
    "Its kernels are divided by ε and the pseudo-derivative divides by ε again: θ has 1/ε times the paper's gradient, "
    "of error and L0 alike. Adam does not see that; clipping, on in its trainer by default, does. (Asked with its "
    "rectangle kernel, which is not the default.)"
)
NOTES = {
    "auxk_decoder": Note(ALL + "and the residual is no constant.", difference={"of_all": True, "detached": False}),
    "auxk_encoder": Note(ALL + "and the residual is no constant.", difference={"of_all": True, "detached": False}),
    "auxk_living": Note(ALL + "and the residual is no constant.", difference={"of_all": True, "detached": False}),
    "auxk_size": Note(ALL + "a mean over entries.", difference={"of_all": True, "over": "entries"}),
    "batch_topk": Note("Its k counts the latents of a batch: given k·b."),
    "jumprelu": Note(TWICE, difference={"twice_divided": True}),
    "jumprelu_l0": Note(
        TWICE + " The step is there to be called; no loss is made of it.", difference={"twice_divided": True}
    ),
    "relu_l1": Note("Its L1 is a sum over the batch, its error a mean over rows and coordinates: given λ/(b·d)."),
    "tangent": Note("Rows are normalised at every pass, the gradient is left as it is."),
    "fvu": Note(
        "1 − r2_score: the mean that is predicted is one number for all coordinates.",
        difference={"scalar_mean": True},
    ),
}
Made = tuple[Any, dict[str, torch.Tensor]]


def build(kind: Any, s: Scenario, **options: Any) -> Made:
    sae = kind(D, N, **options).double().train()
    linear = sae.encoder.final_block[0]
    named = {"W_enc": linear.weight, "b_enc": linear.bias, "W_dec": sae.dictionary._weights}
    set_parameters(named, s.p)
    return sae, named


def rows(s: Scenario) -> torch.Tensor:
    return tensor(s.x - s.p["b_pre"])


def trained(made: Made, s: Scenario, penalty: float = 0.0) -> Arrays:
    sae, named = made
    pre, z, x_hat = sae(rows(s))
    loss = mse_l1(rows(s), x_hat, pre, z, sae.get_dictionary(), penalty=penalty)
    return {"x_hat": array(x_hat) + s.p["b_pre"], **gradients(D * loss, named)}


def topk(s: Scenario) -> Arrays:
    return trained(build(TopKSAE, s, top_k=s.k), s)


def auxk(s: Scenario) -> Arrays:
    sae, named = build(TopKSAE, s, top_k=s.k)
    pre, z, x_hat = sae(rows(s))
    one, two = (top_k_auxiliary_loss(rows(s), x_hat, pre, z, sae.get_dictionary(), penalty=p) for p in (1.0, 2.0))
    return {"loss": array(two - one), **gradients(two - one, named)}


def batch_topk(s: Scenario) -> Arrays:
    return trained(build(BatchTopKSAE, s, top_k=s.k * len(s.x)), s)


def batch_topk_threshold(s: Scenario) -> Arrays:
    sae, _ = build(BatchTopKSAE, s, top_k=s.k * len(s.x))
    for _ in range(3):
        sae(rows(s))
    z = sae.eval().encode(tensor(s.fresh - s.p["b_pre"]))[1]
    return {"theta": array(sae.running_threshold), "z": array(z)}


def relu_l1(s: Scenario) -> Arrays:
    found = trained(build(SAE, s), s, penalty=s.weight / s.x.size)
    return {name: found[name] for name in ("W_enc", "b_enc", "W_dec")}


def jump(s: Scenario) -> Made:
    sae, named = build(JumpSAE, s, kernel="rectangle", bandwidth=s.bandwidth)
    sae.thresholds.data = tensor(s.p["theta"]).log()
    return sae, {**named, "theta": sae.thresholds}


def jumprelu(s: Scenario) -> Arrays:
    found = trained(jump(s), s)
    return found | {"theta": found["theta"] / s.p["theta"]}


def jumprelu_l0(s: Scenario) -> Arrays:
    sae, named = jump(s)
    pre, _, _ = sae(rows(s))
    l0 = heaviside(pre.relu(), sae.thresholds.exp(), sae.kernel_fn, sae.bandwidth).sum(1).mean()
    found = gradients(l0, named)
    return {"theta": found["theta"] / s.p["theta"], "W_enc": found["W_enc"], "b_enc": found["b_enc"]}


def unit_rows(s: Scenario) -> Arrays:
    return {"W_dec": array(build(SAE, s)[0].get_dictionary())}


def fvu(s: Scenario) -> Arrays:
    return {"fvu": array(1 - r2_score(tensor(s.x), tensor(reference_topk(s)["x_hat"])))}
