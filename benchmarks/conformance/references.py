"""What the papers say, in NumPy: losses and gradients written out by hand, without autograd.

Losses are sums over the D coordinates and means over the B rows. Options other than their defaults turn a formula
into what some package computes instead: so a difference is not only found but explained. `centred=False` leaves b_pre
out of the encoder, which is a choice of architecture.
"""

from __future__ import annotations

import numpy as np
from scenarios import Scenario

Arrays = dict[str, np.ndarray]


def relu(pre: np.ndarray) -> np.ndarray:
    return np.maximum(pre, 0.0)


def pre_activations(p: Arrays, x: np.ndarray, centred: bool = True) -> np.ndarray:
    return (x - centred * p["b_pre"]) @ p["W_enc"].T + p["b_enc"]


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Mask of the k largest of each row."""
    mask = np.zeros(values.shape, bool)
    np.put_along_axis(mask, np.argsort(-values, axis=1)[:, :k], True, axis=1)
    return mask


def reconstruct(p: Arrays, z: np.ndarray) -> np.ndarray:
    return z @ p["W_dec"] + p["b_pre"]


def upstream(p: Arrays, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Derivative of the mean of ‖x̂ − x‖² by x̂."""
    return 2 / len(x) * (reconstruct(p, z) - x)


def encoder(p: Arrays, x: np.ndarray, g_pre: np.ndarray, centred: bool = True) -> Arrays:
    """From the derivative by π to those by what π is made of."""
    return {
        "W_enc": g_pre.T @ (x - centred * p["b_pre"]),
        "b_enc": g_pre.sum(0),
        "W_dec": np.zeros_like(p["W_dec"]),
        "b_pre": -centred * g_pre.sum(0) @ p["W_enc"],
    }


def decoder(z: np.ndarray, g_x_hat: np.ndarray) -> Arrays:
    return {"W_dec": z.T @ g_x_hat, "b_pre": g_x_hat.sum(0)}


def add(*terms: Arrays) -> Arrays:
    """Gradients summed name by name."""
    total: Arrays = {}
    for term in terms:
        for name, value in term.items():
            total[name] = total.get(name, 0.0) + value
    return total


def squared_error(p: Arrays, x: np.ndarray, z: np.ndarray, through: np.ndarray, centred: bool = True) -> Arrays:
    """Gradients of the mean of ‖x̂ − x‖², where `through` [B, N] is what dz/dπ is."""
    g_x_hat = upstream(p, x, z)
    return add(encoder(p, x, g_x_hat @ p["W_dec"].T * through, centred), decoder(z, g_x_hat))


def topk(s: Scenario, centred: bool = True, through_zero: bool = False) -> Arrays:
    """z = ReLU(TopK(π)); `through_zero`: selected latents have a gradient even where the ReLU makes them 0."""
    pre = pre_activations(s.p, s.x, centred)
    selected = largest(pre, s.k)
    z = relu(pre) * selected
    through = selected if through_zero else selected & (pre > 0)
    return {"x_hat": reconstruct(s.p, z), **squared_error(s.p, s.x, z, through, centred)}


def multi_topk(s: Scenario, encoder_of_wide: bool = True) -> Arrays:
    """L(k) + L(4k)/8; without `encoder_of_wide` the second term has no gradient by π."""
    pre = pre_activations(s.p, s.x)
    terms = []
    for k, weight, of_encoder in ((s.k, 1.0, True), (4 * s.k, 1 / 8, encoder_of_wide)):
        selected = largest(pre, k) & (pre > 0)
        gradients = squared_error(s.p, s.x, pre * selected, selected * of_encoder)
        terms.append({name: weight * value for name, value in gradients.items()})
    return add(*terms)


def auxk(
    s: Scenario,
    centred: bool = True,
    rectified: bool = True,
    encoder_learns: bool = True,
    detached: bool = True,
    of_all: bool = False,
    over: str = "residual",
    fewer_weigh_less: bool = False,
) -> Arrays:
    """Σ‖ê − e‖² / Σ‖e − mean e‖², ê the attempt of the k_aux largest dead latents at the residual e, a constant.

    "loss" is that, the gradients are those of the numerator. Options: negative values take part as they are; no
    gradient by π; the residual is no constant; candidates are all latents that were not selected, and half of all are
    taken; over Σ‖x − mean x‖², rows or entries; times dead / k_aux where that is below 1.
    """
    pre = pre_activations(s.p, s.x, centred)
    selected = largest(pre, s.k) & (pre > 0)
    z = pre * selected
    candidates, k_aux = (~selected, pre.shape[1] // 2) if of_all else (s.dead & np.ones_like(selected), s.k_aux)
    chosen = largest(np.where(candidates, pre, -np.inf), k_aux) & candidates & ((pre > 0) | (not rectified))
    attempt, e = pre * chosen, s.x - reconstruct(s.p, z)
    miss = attempt @ s.p["W_dec"] - e
    by_attempt = miss @ s.p["W_dec"].T
    terms = [encoder(s.p, s.x, 2 * by_attempt * chosen * encoder_learns, centred), decoder(attempt, 2 * miss)]
    if not detached:
        terms += [encoder(s.p, s.x, 2 * by_attempt * selected, centred), decoder(z, 2 * miss)]
    fraction = min(s.dead.sum() / s.k_aux, 1.0) if fewer_weigh_less else 1.0
    return add(*terms) | {"loss": np.array(fraction * np.square(miss).sum() / normaliser(s.x, e, over))}


def normaliser(x: np.ndarray, e: np.ndarray, over: str) -> float:
    """What AuxK is divided by: the residual's variation in the paper."""
    return {
        "residual": np.square(e - e.mean(0)).sum(),
        "total": np.square(x - x.mean(0)).sum(),
        "rows": len(x),
        "entries": x.size,
    }[over]


def batch_codes(p: Arrays, x: np.ndarray, k: int, centred: bool = True) -> np.ndarray:
    """ReLU(π) where among the B·k largest of the batch."""
    pre = relu(pre_activations(p, x, centred))
    return np.where(pre >= np.sort(pre.ravel())[-len(x) * k], pre, 0.0)


def batch_topk(s: Scenario, centred: bool = True) -> Arrays:
    z = batch_codes(s.p, s.x, s.k, centred)
    return {"x_hat": reconstruct(s.p, z), **squared_error(s.p, s.x, z, z > 0, centred)}


def batch_topk_threshold(s: Scenario) -> Arrays:
    """θ: the mean over batches (here always the same) of the smallest latent kept; then z = π where π > θ."""
    z = batch_codes(s.p, s.x, s.k)
    theta = z[z > 0].min()
    pre = pre_activations(s.p, s.fresh)
    return {"theta": np.array(theta), "z": pre * (pre > theta)}


def matryoshka(s: Scenario) -> Arrays:
    """The sum over prefixes m of ‖z_{<m} W_dec + b_pre − x‖², under one BatchTopK."""
    z = batch_codes(s.p, s.x, s.k)
    return add(
        *(squared_error(s.p, s.x, part, part > 0) for part in (z * (np.arange(z.shape[1]) < m) for m in s.prefixes))
    )


def relu_l1(s: Scenario) -> Arrays:
    """Squared error + λ mean ‖z‖₁."""
    pre = pre_activations(s.p, s.x)
    on = pre > 0
    return add(squared_error(s.p, s.x, pre * on, on), encoder(s.p, s.x, s.weight / len(s.x) * on))


def relu_decoder_norm(s: Scenario, centred: bool = False) -> Arrays:
    """Squared error + λ mean Σ z_i ‖d_i‖."""
    pre = pre_activations(s.p, s.x, centred)
    on = pre > 0
    return add(squared_error(s.p, s.x, pre * on, on, centred), weighted_l1(s, pre * on, centred))


def weighted_l1(s: Scenario, opened: np.ndarray, centred: bool = True) -> Arrays:
    """Gradients of λ mean Σ opened_i ‖d_i‖."""
    share, norm = s.weight / len(s.x), np.linalg.norm(s.p["W_dec"], axis=1)
    of_decoder = {"W_dec": share * opened.sum(0)[:, None] * s.p["W_dec"] / norm[:, None]}
    return add(encoder(s.p, s.x, share * norm * (opened > 0), centred), of_decoder)


def gated(s: Scenario, frozen: bool = True, by_norm: bool = False) -> Arrays:
    """Squared error + λ mean ‖ReLU(π_gate)‖₁ + squared error of decoding ReLU(π_gate) with the decoder a constant.

    Options: the decoder learns from the last term too; L1 is weighted by decoder norms.
    """
    shared = (s.x - s.p["b_pre"]) @ s.p["W_enc"].T
    scale = np.exp(s.p["r_mag"])
    gate, magnitude = shared + s.p["b_enc"], shared * scale + s.p["b_mag"]
    z, opened = (gate > 0) * relu(magnitude), relu(gate)
    g_x_hat, g_aux = upstream(s.p, s.x, z), upstream(s.p, s.x, opened)
    g_magnitude = g_x_hat @ s.p["W_dec"].T * (gate > 0) * (magnitude > 0)
    g_gate = g_aux @ s.p["W_dec"].T * (gate > 0) + (0.0 if by_norm else s.weight / len(s.x) * (gate > 0))
    learned = [encoder(s.p, s.x, g_gate), decoder(z, g_x_hat)]
    learned += [] if frozen else [decoder(opened, g_aux)]
    learned += [weighted_l1(s, opened)] if by_norm else []
    of_magnitude = encoder(s.p, s.x, g_magnitude * scale) | {"b_enc": 0.0}
    own = {"r_mag": (g_magnitude * shared * scale).sum(0), "b_mag": g_magnitude.sum(0)}
    return {"x_hat": reconstruct(s.p, z), **add(*learned, of_magnitude, own)}


def kernel(s: Scenario, pre: np.ndarray) -> np.ndarray:
    """K((π − θ)/ε), 1 within half a bandwidth of the threshold."""
    return np.abs(pre - s.p["theta"]) < s.bandwidth / 2


def jumprelu(s: Scenario, centred: bool = True, twice_divided: bool = False) -> Arrays:
    """Squared error with z = π·H(π − θ): ∂z/∂π = H, ∂z/∂θ = −(θ/ε) K."""
    pre = pre_activations(s.p, s.x, centred)
    on = pre > s.p["theta"]
    z = pre * on
    g_z = upstream(s.p, s.x, z) @ s.p["W_dec"].T
    g_theta = -s.p["theta"] / s.bandwidth ** (2 if twice_divided else 1) * (g_z * kernel(s, pre)).sum(0)
    return {"x_hat": reconstruct(s.p, z), **squared_error(s.p, s.x, z, on, centred), "theta": g_theta}


def jumprelu_l0(
    s: Scenario, centred: bool = True, to_target: bool = False, of_kept: bool = False, twice_divided: bool = False
) -> Arrays:
    """Mean ‖z‖₀: no gradient by π, by θ −K/ε. Options: (L0/target − 1)²; latents below their threshold have none."""
    pre = pre_activations(s.p, s.x, centred)
    on = pre > s.p["theta"]
    near = kernel(s, pre) & (on if of_kept else True)
    outer = 2 * (on.sum() / len(s.x) / s.target_l0 - 1) / s.target_l0 if to_target else 1.0
    g_theta = -outer * near.sum(0) / s.bandwidth ** (2 if twice_divided else 1) / len(s.x)
    return {"theta": g_theta, "W_enc": np.zeros_like(s.p["W_enc"]), "b_enc": np.zeros_like(s.p["b_enc"])}


def unit_rows(s: Scenario) -> Arrays:
    return {"W_dec": s.p["W_dec"] / np.linalg.norm(s.p["W_dec"], axis=1, keepdims=True)}


def tangent(s: Scenario) -> Arrays:
    """A gradient without what would only change the norm of a unit row."""
    d = s.p["W_dec"]
    return {"W_dec": s.gradient - (s.gradient * d).sum(1, keepdims=True) * d}


def fvu(s: Scenario, around_mean: bool = False, scalar_mean: bool = False, centred: bool = True) -> Arrays:
    """Σ‖x − x̂‖² / Σ‖x − mean x‖² of the TopK reconstruction.

    Options: the error's own mean is subtracted from it; the mean of x is one number for all coordinates.
    """
    e = s.x - topk(s, centred)["x_hat"]
    e = e - e.mean(0) * around_mean
    mean = s.x.mean() if scalar_mean else s.x.mean(0)
    return {"fvu": np.array(np.square(e).sum() / np.square(s.x - mean).sum())}
