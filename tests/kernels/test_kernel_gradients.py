"""Gradients in float64 against finite differences and against formulas worked out by hand."""

import math

import pytest
import torch
from kernel_doubles import B, make_batch, make_optimiser, make_state, relu_objective, topk_objective

from sae_pipeline.kernels import Parameters, TrainState, reference, train_step
from sae_pipeline.kernels.auxk import auxk_gradient

EPS = 1e-6


def _loss(state, x, objective, l1, frozen_error=None):
    """The loss written out anew, AuxK's target held fixed at `frozen_error`."""
    p = state.params
    pre = (x - p.b_pre) @ p.W_enc.T + p.b_enc
    z = objective.activation(pre)
    error = x - z @ p.W_dec - p.b_pre
    total = objective.loss_scale * error.square().sum() / len(x) + l1 * math.sqrt(objective.loss_scale) * z.sum() / len(
        x
    )
    if frozen_error is not None:
        dead = state.fired.dead(objective.dead_after_tokens)
        chosen = torch.where(dead, pre.relu(), 0.0)
        kth = chosen.topk(objective.auxk_k, dim=1).values[:, -1:]
        e_hat = torch.where(chosen >= kth, chosen, 0.0) @ p.W_dec
        variation = (frozen_error - frozen_error.mean(0)).square().sum()
        total = total + objective.auxk_alpha * (e_hat - frozen_error).square().sum() / variation
    return float(total)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_pre"])
@pytest.mark.parametrize(
    ("objective", "l1"), [(topk_objective(), 0.0), (topk_objective(auxk_k=0), 0.0), (relu_objective(), 0.05)]
)
def test_reference_gradient_equals_finite_differences(name, objective, l1):
    state, x = make_state(silent=12), make_batch(0)
    p = state.params
    losses, (gradients, _) = reference.losses_and_gradients(state, x, objective, l1)
    error = x - objective.activation(reference.pre_activations(p, x)) @ p.W_dec - p.b_pre
    frozen = error if float(losses.auxk) else None
    assert (frozen is not None) == (objective.auxk_k > 0)
    g = torch.Generator().manual_seed(5)
    tensor = getattr(p, name)
    for _ in range(3):
        direction = torch.randn(tensor.shape, generator=g, dtype=tensor.dtype)
        original = tensor.clone()
        sides = []
        for sign in (1, -1):
            tensor.copy_(original + sign * EPS * direction)
            sides.append(_loss(state, x, objective, l1, frozen))
        tensor.copy_(original)
        numeric = (sides[0] - sides[1]) / (2 * EPS)
        exact = float((getattr(gradients, name) * direction).sum())
        assert exact == pytest.approx(numeric, rel=2e-6, abs=1e-9)


def test_topk_gradient_equals_the_closed_form_of_the_paper():
    state, x = make_state(), make_batch(0)
    objective = topk_objective(auxk_k=0)
    _, (gradients, _) = reference.losses_and_gradients(state, x, objective, 0.0)
    p, scale = state.params, objective.loss_scale
    pre = (x - p.b_pre) @ p.W_enc.T + p.b_enc
    values, indices = pre.topk(4)
    z = torch.zeros_like(pre).scatter(1, indices, values.relu())
    g_x_hat = 2 * scale / B * (z @ p.W_dec + p.b_pre - x)
    g_pre = (g_x_hat @ p.W_dec.T) * (z > 0)
    expected = Parameters(g_pre.T @ (x - p.b_pre), g_pre.sum(0), z.T @ g_x_hat, g_x_hat.sum(0) - g_pre.sum(0) @ p.W_enc)
    for name, gradient in gradients.named().items():
        torch.testing.assert_close(gradient, expected.named()[name], rtol=1e-12, atol=1e-15)


def test_auxk_reaches_encoder_and_decoder_of_the_dead_and_nothing_of_the_living():
    state, x = make_state(silent=12), make_batch(0)
    _, (without, _) = reference.losses_and_gradients(state, x, topk_objective(auxk_k=0), 0.0)
    state = make_state(silent=12)
    losses, (with_aux, _) = reference.losses_and_gradients(state, x, topk_objective(), 0.0)
    dead = state.fired.dead(B)
    assert 0 < int(dead.sum()) < len(dead) and float(losses.auxk) > 0
    for name in ("W_enc", "b_enc", "W_dec"):
        change = (getattr(with_aux, name) - getattr(without, name)).abs()
        change = change.sum(1) if change.ndim == 2 else change
        assert float(change[~dead].max()) == 0.0, name
        reached = change[dead] > 0
        assert int(reached.sum()) >= 0.5 * int(dead.sum()), name


def test_auxk_of_a_constant_error_is_dropped_without_touching_the_gradient():
    state = make_state(silent=40, average=False)
    state.params.b_enc.fill_(-100.0)  # nothing fires: the error of equal rows is the same vector, its variation 0
    x = torch.ones(B, 12, dtype=torch.float64)
    losses, (gradients, _) = reference.losses_and_gradients(state, x, topk_objective(), 0.0)
    assert bool(state.fired.dead(B).all()) and float(losses.auxk) == 0.0
    assert auxk_gradient(state.params, x - state.params.b_pre, x, torch.arange(40), 3, 1.0)[1] is None
    assert all(bool(g.isfinite().all()) for g in gradients.named().values())
    assert float(gradients.W_dec.abs().max()) == 0.0


def test_one_latent_relu_settles_at_the_shrunken_amplitude():
    """min over z of s (a − z)² + l1 √s z is z = a − l1 / (2 √s): the shrinkage of Gao et al. 2024 §5.1."""
    a, s, l1 = 2.0, 0.25, 0.3
    one = torch.ones(1, 1, dtype=torch.float64)
    state = TrainState.start(
        Parameters(one.clone(), torch.zeros(1).double(), one.clone(), torch.zeros(1).double()), average=False
    )
    x = torch.full((8, 1), a, dtype=torch.float64)
    objective = relu_objective(loss_scale=s)
    for _ in range(400):
        state.params.b_pre.zero_()  # b_pre would explain a constant input by itself
        train_step(state, x, objective, make_optimiser(ema=None), lr=0.02, l1=l1)
    state.params.b_pre.zero_()
    z = float(reference.pre_activations(state.params, x)[0, 0])
    assert z == pytest.approx(a - l1 / (2 * math.sqrt(s)), abs=5e-3)
