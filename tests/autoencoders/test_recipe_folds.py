"""What is saved computes what was trained, and each recipe has the properties it is known for."""

import math

import pytest
import torch

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.autoencoders.recipes import RECIPES
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.kernels.estimators import prolu
from tests.autoencoders.recipe_doubles import (
    PREFIXES,
    SCALE,
    D,
    K,
    N,
    batch,
    gradients,
    objective,
    parameters,
    settings,
)


def trained_pass(name, params, x, **options):
    goal = objective(name, **options)
    if goal.forward is None:
        pre = (x - params.b_pre) @ params.W_enc.T + params.b_enc
        z = goal.activation(pre)
        return z, z @ params.W_dec + params.b_pre
    done = goal.forward(params, x, SCALE)
    return done.z_bn, done.x_hat_bd


def saved(name, params):
    k = K if RECIPES[name].encoder == "topk" else None
    return Autoencoder(AutoencoderConfig(name, N, D, k), RECIPES[name].fold(params), Normaliser("none", D))


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"batch-topk", "matryoshka"}))
def test_the_saved_form_reconstructs_what_the_trained_one_does(name):
    params, x = parameters(name), batch(b=200)
    z, x_hat = trained_pass(name, params, x)
    autoencoder = saved(name, params)
    codes = autoencoder.encode(x)
    torch.testing.assert_close(autoencoder.decode(codes), x_hat, rtol=1e-9, atol=1e-10)
    assert torch.equal(codes.dense(N) > 0, z > 0) and (z > 0).any()
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("name", ["batch-topk", "matryoshka"])
def test_over_a_batch_the_threshold_takes_the_place_of_the_batch(name):
    """At the smallest latent kept, a threshold keeps the same latents but that one (kept is what exceeds it)."""
    params, x = parameters(name), batch(b=64)
    z, _ = trained_pass(name, params, x)
    _, _, observed = gradients(name, params, x)
    assert float(observed["cut"]) == float(z[z > 0].min()) and int((z > 0).sum()) == 64 * K
    params.extra["cut"] = observed["cut"]
    dense = saved(name, params).encode(x).dense(N)
    assert int((dense > 0).sum()) == 64 * K - 1
    torch.testing.assert_close(dense, torch.where(z > observed["cut"], z, 0.0))
    counts = (z > 0).sum(1)
    assert counts.min() < K < counts.max()


def test_gated_is_the_jumprelu_that_the_paper_says():
    """θ = b_mag − exp(r_mag) ⊙ b_gate on the magnitude's pre-activations (§3.2)."""
    params, x = parameters("gated"), batch(b=100)
    shared = (x - params.b_pre) @ params.W_enc.T
    expected = (shared + params.b_enc > 0) * (shared * params.extra["r_mag"].exp() + params.extra["b_mag"]).relu()
    torch.testing.assert_close(saved("gated", params).encode(x).dense(N), expected, rtol=1e-9, atol=1e-11)


def test_prolu_is_a_threshold_and_positive_biases_do_nothing():
    m, b = torch.linspace(-2, 2, 81, dtype=torch.float64)[:, None], torch.tensor([-1.0, 0.0, 1.0]).double()
    z = prolu(m.expand(-1, 3), b, straight_through=True)
    for column, threshold in enumerate((1.0, 0.0, 0.0)):
        assert torch.equal(z[:, column], torch.where(m[:, 0] > threshold, m[:, 0], 0.0))


def test_l1_shrinks_an_isolated_latent_by_half_its_weight():
    """One direction of size a, unit decoder: the minimum of s(a − z)² + λ√s z lies at z = a − λ/(2√s)."""
    a, weight = 2.0, 0.6
    z = torch.tensor(a - weight / (2 * math.sqrt(SCALE)), dtype=torch.float64)
    d = torch.zeros(1, 3, dtype=torch.float64)
    d[0, 0] = 1.0
    params = Parameters(d.clone(), (z - a)[None].clone(), d.clone(), torch.zeros(3, dtype=torch.float64))
    _, found, _ = gradients("relu", params, a * d, weight=weight)
    assert abs(float(found["b_enc"])) < 1e-12
    _, away, _ = gradients("relu", params, a * d, weight=0.0)
    assert float(away["b_enc"]) < -0.1


def test_penalties_approach_what_they_stand_for():
    from sae_pipeline.autoencoders.recipes.relu import smooth, tanh

    z = torch.linspace(0, 3, 301, dtype=torch.float64).requires_grad_()
    for epsilon, bound in ((1e-2, 0.1), (1e-4, 0.01), (1e-8, 1e-4)):
        assert float((smooth(z, settings("relu-smooth", epsilon=epsilon)) - z).detach().abs().max()) <= bound
    (slope,) = torch.autograd.grad(tanh(z, settings("tanh", b=2.0)).sum(), z)
    assert float(slope[0]) == 1.0 and float(slope[z * 2.0 > 3.8].max()) < 0.01


def test_l1_over_l2_is_blind_to_scale_and_safe_at_zero():
    from sae_pipeline.autoencoders.recipes.topk import l1_over_l2

    g = torch.Generator().manual_seed(0)
    a = torch.rand(5, 8, generator=g, dtype=torch.float64)
    a[2] = 0.0
    a.requires_grad_()
    mask = torch.ones(8, dtype=torch.bool)
    value = l1_over_l2(a, a, mask)
    torch.testing.assert_close(l1_over_l2(3.7 * a, a, mask), value, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), a)
    assert bool(gradient.isfinite().all()) and not gradient[2].any() and float(value[2].detach()) == 0.0
    row = a[0].detach()
    expected = 1 / row.norm() - row.sum() * row / row.norm() ** 3
    torch.testing.assert_close(gradient[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in sorted(RECIPES) if RECIPES[name].encoder == "threshold"])
def test_thresholds_are_saved_and_loaded(name, tmp_path):
    params = parameters(name).map(torch.Tensor.float)
    autoencoder, x = saved(name, params), batch().float()
    autoencoder.save(tmp_path)
    loaded = Autoencoder.load(tmp_path)
    assert torch.equal(loaded.parameters.extra["threshold"], autoencoder.parameters.extra["threshold"])
    assert torch.equal(loaded.encode(x).dense(N), autoencoder.encode(x).dense(N))


def test_matryoshka_prefixes_decode_alone():
    """The loss is the mean over prefixes; its last term is that of the whole, which the pass reports."""
    params, x = parameters("matryoshka"), batch()
    done = objective("matryoshka").forward(params, x, SCALE)
    torch.testing.assert_close(done.x_hat_bd, done.z_bn @ params.W_dec + params.b_pre)
    alone = [done.z_bn[:, :m] @ params.W_dec[:m] + params.b_pre for m in PREFIXES]
    expected = sum(SCALE * (x_hat - x).square().sum() / len(x) for x_hat in alone) / len(PREFIXES)
    torch.testing.assert_close(done.loss, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"factr": 3.0}, "no option 'factr'; it has: factor, weight")],
)
def test_unknown_options_are_refused_by_name(given, message):
    from sae_pipeline.autoencoders import check_options
    from sae_pipeline.store import PipelineError

    with pytest.raises(PipelineError, match=message):
        check_options("multi-topk", given)
    assert check_options("multi-topk", {"factor": 2.0}) == {"factor": 2.0, "weight": 0.125}


@pytest.mark.parametrize("name", [name for name, recipe in sorted(RECIPES.items()) if recipe.trains is not None])
@pytest.mark.parametrize("parent", ["relu", "gated"])
def test_finetuning_starts_as_its_parent(name, parent):
    """A scale of 1 and an untouched rest are the identity."""
    origin = saved(parent, parameters(parent))
    start = RECIPES[name].start(origin.parameters, settings(name), SCALE)
    x = batch(b=100)
    before, after = origin.encode(x), saved(name, start).encode(x)
    torch.testing.assert_close(after.dense(N), before.dense(N), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(saved(name, start).decode(after), origin.decode(before), rtol=1e-12, atol=1e-12)


def test_a_positive_scale_keeps_what_is_on():
    start = RECIPES["finetune-scale"].start(saved("relu", parameters("relu")).parameters, settings("relu"), SCALE)
    x = batch(b=100)
    before = saved("finetune-scale", start).encode(x).dense(N)
    start.extra["log_scale"] = torch.linspace(-2, 2, N, dtype=torch.float64)
    after = saved("finetune-scale", start).encode(x).dense(N)
    torch.testing.assert_close(after, before * start.extra["log_scale"].exp(), rtol=1e-9, atol=1e-12)
    assert torch.equal(after > 0, before > 0)


def test_wider_dictionaries_start_better_at_k_one():
    """Gao et al. 2024 §A.1 says so of directions; rows drawn from a cube also differ in norm, which sets a floor."""
    from sae_pipeline.autoencoders import initialise
    from sae_pipeline.study import AutoencoderSpec

    d, x = 4, torch.nn.functional.normalize(torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    errors = []
    for n in (8, 64, 512):
        spec = AutoencoderSpec(
            key="x", recipe="topk", n=n, k=1, batch=1, tokens=1, lr=1e-3, dead_after_tokens=1, auxk_k=None
        )
        params = initialise(spec, Normaliser("none", d), torch.zeros(d))
        autoencoder = Autoencoder(AutoencoderConfig("topk", n, d, 1), params, Normaliser("none", d))
        errors.append(float((autoencoder.decode(autoencoder.encode(x)) - x).square().sum(1).mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]
