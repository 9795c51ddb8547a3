"""Every recipe's gradients in float64: finite differences where the estimator is the derivative, else closed forms.

The losses of the finite differences and the closed forms are written down here from the papers, without autograd and
without the project's own code.
"""

import math

import numpy as np
import pytest
import torch

from sae_pipeline.autoencoders.recipes import RECIPES
from sae_pipeline.kernels import Optimiser, TrainState, train_step
from sae_pipeline.kernels.reference import losses_and_gradients
from tests.autoencoders.recipe_doubles import (
    PREFIXES,
    SCALE,
    WEIGHT,
    B,
    K,
    N,
    batch,
    gradients,
    objective,
    parameters,
)

ROOT = math.sqrt(SCALE)


def relu(array):
    return np.maximum(array, 0.0)


def top(pre, k):
    """Keep the k largest of every row, if positive."""
    kept = np.zeros_like(pre)
    for row, source in zip(kept, pre, strict=True):
        chosen = np.argsort(-source)[:k]
        row[chosen] = relu(source[chosen])
    return kept


def error(x_hat, x):
    return SCALE * np.square(x_hat - x).sum() / B


def pre_of(p, x):
    return (x - p["b_pre"]) @ p["W_enc"].T + p["b_enc"]


def plain(p, x, z):
    return error(z @ p["W_dec"] + p["b_pre"], x)


def l1(z):
    return WEIGHT * ROOT * z.sum() / B


def smooth_loss(p, x, epsilon=1e-6):
    z = relu(pre_of(p, x))
    return plain(p, x, z) + WEIGHT * (np.sqrt(SCALE * z**2 + epsilon) - math.sqrt(epsilon)).sum() / B


def tanh_loss(p, x):
    z = relu(pre_of(p, x))
    return plain(p, x, z) + WEIGHT * (np.tanh(4.0 * ROOT * z) / 4.0).sum() / B


def decoder_norm_loss(p, x):
    z = relu(x @ p["W_enc"].T + p["b_enc"])
    return plain(p, x, z) + l1(z * np.linalg.norm(p["W_dec"], axis=1))


def multi_loss(p, x):
    pre = pre_of(p, x)
    return plain(p, x, top(pre, K)) + plain(p, x, top(pre, 4 * K)) / 8


def counted(p, x, masked):
    pre = pre_of(p, x)
    z = top(pre, K)
    return relu(pre), z, (z > 0).any(0) if masked else np.ones(N, bool)


def off_support_loss(p, x, masked=1.0):
    a, z, mask = counted(p, x, masked)
    return plain(p, x, z) + WEIGHT * ROOT * np.abs((a - z) * mask).sum() / B


def l1_over_l2_loss(p, x, masked=1.0):
    a, z, mask = counted(p, x, masked)
    ratios = [row.sum() / np.linalg.norm(row) if row.any() else 0.0 for row in a * mask]
    return plain(p, x, z) + WEIGHT * sum(ratios) / B


def batch_codes(p, x):
    pre = relu(pre_of(p, x))
    return np.where(pre >= np.sort(pre.ravel())[-B * K], pre, 0.0)


def matryoshka_loss(p, x):
    z = batch_codes(p, x)
    return np.mean([error(z[:, :m] @ p["W_dec"][:m] + p["b_pre"], x) for m in PREFIXES])


DERIVATIVES = {
    "relu": lambda p, x: plain(p, x, relu(pre_of(p, x))) + l1(relu(pre_of(p, x))),
    "relu-smooth": smooth_loss,
    "relu-decoder-norm": decoder_norm_loss,
    "tanh": tanh_loss,
    "topk": lambda p, x: plain(p, x, top(pre_of(p, x), K)),
    "multi-topk": multi_loss,
    "topk-off-support-l1": off_support_loss,
    "topk-l1-over-l2": l1_over_l2_loss,
    "batch-topk": lambda p, x: plain(p, x, batch_codes(p, x)),
    "matryoshka": matryoshka_loss,
}
FINETUNED = {name for name, recipe in RECIPES.items() if recipe.trains is not None}
CLOSED = {"gated", "prolu-relu", "prolu-ste", "jumprelu"}


def arrays(params):
    return {name: tensor.numpy().copy() for name, tensor in params.named().items()}


def differences(loss, p, x, name, step=1e-5):
    """Central differences of `loss` by every entry of one parameter, exact to the fourth order."""
    result = np.zeros_like(p[name])
    for at in np.ndindex(p[name].shape):
        values = []
        for steps in (-2, -1, 1, 2):
            moved = {key: array.copy() for key, array in p.items()}
            moved[name][at] += steps * step
            values.append(loss(moved, x))
        result[at] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return result


def test_every_recipe_is_covered():
    assert DERIVATIVES.keys() | CLOSED | FINETUNED == RECIPES.keys() and not DERIVATIVES.keys() & CLOSED


@pytest.mark.parametrize("name", sorted(DERIVATIVES))
def test_gradients_are_the_derivatives(name):
    params, x = parameters(name), batch()
    _, found, observed = gradients(name, params, x, weight=WEIGHT if "l1" in RECIPES[name].needs else 0.0)
    p, rows = arrays(params), x.numpy()
    for key in ("W_enc", "b_enc", "W_dec", "b_pre"):
        expected = differences(DERIVATIVES[name], p, rows, key)
        np.testing.assert_allclose(found[key].numpy(), expected, rtol=1e-8, atol=2e-9, err_msg=key)
        assert np.abs(expected).max() > 1e-3
    assert set(found) - {"W_enc", "b_enc", "W_dec", "b_pre"} == set(observed)


def scaled_loss(p, x):
    pre = pre_of(p, x)
    z = np.exp(p["log_scale"]) * pre * (pre > p["threshold"])
    return error(z @ p["W_dec"] + p["b_dec"], x)


def rescaled_loss(p, x):
    shared = pre_of(p, x) - p["b_enc"]
    return plain(p, x, (pre_of(p, x) > p["threshold"]) * relu(np.exp(p["r_mag"]) * shared + p["b_mag"]))


@pytest.mark.parametrize("name", sorted(FINETUNED))
def test_finetuning_follows_the_derivatives_of_what_it_trains_and_leaves_the_rest(name):
    params, x = parameters(name), batch()
    _, found, _ = gradients(name, params, x, weight=0.0)
    loss = rescaled_loss if name == "finetune-rescale-shift" else scaled_loss
    for key in RECIPES[name].trains:
        expected = differences(loss, arrays(params), x.numpy(), key)
        np.testing.assert_allclose(found[key].numpy(), expected, rtol=1e-8, atol=2e-9, err_msg=key)
        assert np.abs(expected).max() > 1e-3
    state = TrainState.start(params.map(torch.clone), average=True)
    for _ in range(3):
        train_step(state, x, objective(name), Optimiser((0.9, 0.999), 1e-8, 0.9, None), lr=1e-2)
    averaged = state.averaged(0.9, unit_rows=False).named()
    for key, tensor in state.params.named().items():
        assert torch.equal(tensor, params.named()[key]) == (key not in RECIPES[name].trains), key
        if key not in RECIPES[name].trains:
            torch.testing.assert_close(averaged[key], tensor, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "loss"), [("topk-off-support-l1", off_support_loss), ("topk-l1-over-l2", l1_over_l2_loss)]
)
def test_without_the_mask_every_latent_is_regularised(name, loss):
    params, x = parameters(name), batch(b=B)
    x = x[:2].repeat(B // 2, 1)  # two different rows: most latents are selected nowhere
    _, masked, _ = gradients(name, params, x)
    _, found, _ = gradients(name, params, x, masked=0.0)
    expected = differences(lambda p, rows: loss(p, rows, masked=0.0), arrays(params), x.numpy(), "b_enc")
    np.testing.assert_allclose(found["b_enc"].numpy(), expected, rtol=1e-8, atol=2e-9)
    unselected = top(pre_of(arrays(params), x.numpy()), K).max(0) == 0
    assert unselected.sum() > N / 2
    assert not masked["b_enc"].numpy()[unselected].any() and found["b_enc"].numpy()[unselected].any()


def test_the_regularisers_reach_only_what_was_cut_off():
    """Off-support l1: +1 on π_j of rows where j is positive and not selected; nothing on the selected."""
    params, x = parameters("topk-off-support-l1"), batch()
    _, without, _ = gradients("topk-off-support-l1", params, x, weight=0.0)
    _, found, _ = gradients("topk-off-support-l1", params, x)
    a, z, mask = counted(arrays(params), x.numpy(), 1.0)
    expected = WEIGHT * ROOT / B * ((a > 0) & (z == 0) & mask).sum(0)
    np.testing.assert_allclose((found["b_enc"] - without["b_enc"]).numpy(), expected, atol=1e-12)
    assert torch.equal(found["W_dec"], without["W_dec"])


def back_through(p, x, g_z, g_pre, z):
    """Gradients by all shared parameters from those by z (through the decoder) and by π."""
    g_x_hat = 2 * SCALE / B * (z @ p["W_dec"] + p["b_pre"] - x)
    return {
        "W_enc": g_pre.T @ (x - p["b_pre"]),
        "b_enc": g_pre.sum(0),
        "W_dec": z.T @ g_x_hat,
        "b_pre": g_x_hat.sum(0) - g_pre.sum(0) @ p["W_enc"],
    }


def upstream(p, x, z):
    """dL/dz of the squared error."""
    return 2 * SCALE / B * (z @ p["W_dec"] + p["b_pre"] - x) @ p["W_dec"].T


@pytest.mark.parametrize("name", ["prolu-relu", "prolu-ste"])
def test_prolu_gradients_are_the_closed_forms(name):
    params, x = parameters(name), batch()
    losses, found, _ = gradients(name, params, x)
    p, rows = arrays(params), x.numpy()
    m = (rows - p["b_pre"]) @ p["W_enc"].T
    gate = (m > 0) & (m + p["b_enc"] > 0)
    z = m * gate
    g = (upstream(p, rows, z) + WEIGHT * ROOT / B) * gate
    g_m, g_b = (g, g) if name == "prolu-relu" else (g * (1 + m), g * m)
    expected = back_through(p, rows, None, g_m, z) | {"b_enc": g_b.sum(0)}
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-8, atol=1e-12, err_msg=key)
    assert float(losses.l0) == pytest.approx(gate.sum() / B)
    assert ((m > 0) != gate).any()  # a negative b closes some


@pytest.mark.parametrize("target_l0", [0.0, 5.0])
def test_jumprelu_gradients_are_the_pseudo_derivatives(target_l0):
    options = {"bandwidth": 0.8, "threshold": 0.3, "target_l0": target_l0}
    params, x = parameters("jumprelu", **options), batch()
    losses, found, _ = gradients("jumprelu", params, x, **options)
    p, rows = arrays(params), x.numpy()
    bandwidth, threshold = 0.8 / ROOT, np.exp(p["log_threshold"])
    pre = pre_of(p, rows)
    rectified = relu(pre)
    on, kernel = rectified > threshold, np.abs(rectified - threshold) < bandwidth / 2
    z = rectified * on
    g = upstream(p, rows, z)
    l0 = on.sum() / B
    by_l0 = WEIGHT * (2 * (l0 / target_l0 - 1) / target_l0 if target_l0 else 1.0)
    g_threshold = -(threshold / bandwidth) * (g * kernel).sum(0) - by_l0 * kernel.sum(0) / bandwidth / B
    expected = back_through(p, rows, None, g * on, z) | {"log_threshold": g_threshold * threshold}
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-8, atol=1e-12, err_msg=key)
    assert kernel.any() and not kernel.all() and float(losses.l0) == pytest.approx(l0)


def test_gated_gradients_stop_where_the_paper_stops_them():
    params, x = parameters("gated"), batch()
    _, found, _ = gradients("gated", params, x)
    p, rows = arrays(params), x.numpy()
    shared = (rows - p["b_pre"]) @ p["W_enc"].T
    scale = np.exp(p["r_mag"])
    gate, magnitude = shared + p["b_enc"], shared * scale + p["b_mag"]
    z, opened = (gate > 0) * relu(magnitude), relu(gate)
    g_magnitude = upstream(p, rows, z) * (gate > 0) * (magnitude > 0)
    # The auxiliary decoder is a constant: of it only the opened gate gets a gradient.
    g_gate = (upstream(p, rows, opened) + WEIGHT * ROOT / B) * (gate > 0)
    g_x_hat = 2 * SCALE / B * (z @ p["W_dec"] + p["b_pre"] - rows)
    g_shared = g_gate + g_magnitude * scale
    expected = {
        "W_enc": g_shared.T @ (rows - p["b_pre"]),
        "b_enc": g_gate.sum(0),
        "W_dec": z.T @ g_x_hat,
        "b_pre": g_x_hat.sum(0) - g_shared.sum(0) @ p["W_enc"],
        "r_mag": (g_magnitude * shared * scale).sum(0),
        "b_mag": g_magnitude.sum(0),
    }
    assert set(found) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-8, atol=1e-12, err_msg=key)
    assert ((gate > 0) & (magnitude <= 0)).any() and ((gate <= 0) & (magnitude > 0)).any()


@pytest.mark.parametrize("name", [name for name in sorted(RECIPES) if "topk" in name])
def test_auxk_reaches_encoder_and_decoder_of_the_dead_and_nothing_of_the_living(name):
    params, x = parameters(name), batch(b=3)  # few rows: most latents are selected nowhere
    found, dead = [], None
    for auxk_k in (0, 4):
        state = TrainState.start(params, average=False)
        state.fired.tokens_since_fired += 1000
        losses, (gradient, _) = losses_and_gradients(state, x, objective(name, auxk_k=auxk_k, dead_after=500), 0.0)
        dead = state.fired.dead(500)
        found.append(gradient.named())
    without, with_aux = found
    p = arrays(params)
    attempt = top(pre_of(p, x.numpy()) * dead.numpy(), 4)
    error_bd = x.numpy() - (codes_of(name, p, x.numpy()) @ p["W_dec"] + p["b_pre"])
    miss = attempt @ p["W_dec"] - error_bd
    variation = np.square(error_bd - error_bd.mean(0)).sum()
    assert float(losses.auxk) == pytest.approx(np.square(miss).sum() / variation, rel=1e-10)
    g_hat = 2 / 32 * miss / variation
    g_pre = (g_hat @ p["W_dec"].T) * (attempt > 0)
    expected = {
        "W_enc": g_pre.T @ (x.numpy() - p["b_pre"]),
        "b_enc": g_pre.sum(0),
        "W_dec": attempt.T @ g_hat,
        "b_pre": -g_pre.sum(0) @ p["W_enc"],
    }
    for key, value in expected.items():
        np.testing.assert_allclose((with_aux[key] - without[key]).numpy(), value, rtol=1e-8, atol=1e-13, err_msg=key)
    for key in ("W_enc", "b_enc", "W_dec"):
        assert not expected[key][~dead.numpy()].any() and expected[key][dead.numpy()].any()


def codes_of(name, p, x):
    if "topk" in name and name != "batch-topk":
        return top(pre_of(p, x), K)
    pre = relu(pre_of(p, x))
    return np.where(pre >= np.sort(pre.ravel())[-len(x) * K], pre, 0.0)
