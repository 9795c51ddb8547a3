"""The same weights under another activation, for autoencoders of all three saved encoders."""

from dataclasses import asdict

import pytest
import torch

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig, swap
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import PipelineError

D, N, K = 8, 40, 5
KINDS = ("relu", "topk", "gated")


def make(recipe="relu"):
    g = torch.Generator().manual_seed(4)
    W_dec = torch.nn.functional.normalize(torch.randn(N, D, generator=g), dim=1)
    extra = {"threshold": torch.rand(N, generator=g)} if recipe == "gated" else {}
    drawn = torch.randn(N, D, generator=g), torch.randn(N, generator=g), W_dec, torch.randn(D, generator=g)
    config = AutoencoderConfig(recipe, N, D, K if recipe == "topk" else None)
    return Autoencoder(config, Parameters(*drawn, extra), Normaliser("paper", D), {"key": "x", "identity": "0" * 64})


def rows(b=60, seed=9):
    return torch.randn(b, D, generator=torch.Generator().manual_seed(seed))


def latents(sae, u):
    return sae.encode(u).dense(N)


def pre(sae, u):
    return (u - sae.b_pre) @ sae.W_enc.T + sae.b_enc


@pytest.mark.parametrize("kind", KINDS)
def test_topk(kind):
    sae, u = make(kind), rows()
    for k in (1, 7, N):
        top = pre(sae, u).topk(k, dim=1)
        expected = torch.zeros(len(u), N).scatter(1, top.indices, top.values.relu())
        torch.testing.assert_close(latents(sae.with_topk(k), u), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(latents(sae.with_topk(N), u), latents(sae.with_threshold(float("-inf")), u))


@pytest.mark.parametrize("kind", KINDS)
def test_one_threshold_and_one_per_latent(kind):
    sae, u = make(kind), rows()
    rectified = pre(sae, u).relu()
    torch.testing.assert_close(latents(sae.with_threshold(float("-inf")), u), rectified, rtol=1e-5, atol=1e-5)
    assert torch.equal(latents(sae.with_threshold(-3.0), u), latents(sae.with_threshold(0.0), u))
    each = torch.linspace(-1, 2, N)
    for threshold in (0.5, each):
        expected = rectified.where(rectified > threshold, 0.0)
        torch.testing.assert_close(latents(sae.with_threshold(threshold), u), expected, rtol=1e-5, atol=1e-5)
    assert 0 < int((expected > 0).sum()) < int((rectified > 0).sum())


def test_swapping_back_is_the_autoencoder_itself():
    u = rows()
    relu, topk, gated = (make(kind) for kind in KINDS)
    assert torch.equal(latents(topk.with_topk(K), u), latents(topk, u))
    assert torch.equal(latents(topk.with_threshold(0.3).with_topk(K), u), latents(topk, u))
    assert torch.equal(latents(relu.with_threshold(float("-inf")), u), latents(relu, u))
    assert torch.equal(
        latents(gated.with_topk(3).with_threshold(gated.parameters.extra["threshold"]), u), latents(gated, u)
    )
    again = topk.with_topk(K)
    assert torch.equal(again.decode(again.encode(u)), topk.decode(topk.encode(u)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l0", [0.05, 2.5, 4, 11.3])
def test_the_rows_get_the_mean_l0_that_was_asked_for(kind, l0, monkeypatch):
    sae, u = make(kind), rows()
    swapped = sae.with_mean_l0(u, l0)
    counts = swapped.encode(u).l0_b
    assert int(counts.sum()) == round(l0 * len(u)) and swapped.config.recipe == "batch-topk"
    theta = swapped.parameters.extra["threshold"]
    assert bool((theta == theta[0]).all()) and float(theta[0]) == swapped.provenance["swap"]["threshold"] >= 0
    monkeypatch.setattr(swap, "_ROWS_AT_ONCE", 7)
    torch.testing.assert_close(sae.with_mean_l0(u, l0).parameters.extra["threshold"], theta, rtol=1e-5, atol=1e-6)


def test_the_largest_l0_that_can_be_had_is_that_of_the_relu():
    sae, u = make(), rows()
    positive = int((pre(sae, u) > 0).sum())
    assert int(sae.with_mean_l0(u, positive / len(u)).encode(u).l0_b.sum()) == positive
    with pytest.raises(PipelineError, match=f"{positive / len(u):.4g} latents a row are positive"):
        sae.with_mean_l0(u, (positive + 1) / len(u))
    sae.parameters.b_enc += 100.0
    assert int(sae.with_mean_l0(u, N).encode(u).l0_b.sum()) == len(u) * N


def test_between_two_neighbouring_numbers_lies_none():
    """The threshold must stay below the smallest latent that is kept, however close the next one is."""
    high = torch.tensor(1.0)
    low = torch.nextafter(high, torch.tensor(0.0))
    assert float(swap._between(low, high)) == float(low)
    assert float(swap._between(torch.tensor(1.0), torch.tensor(2.0))) == 1.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "recipe", "record"),
    [
        (lambda sae: sae.with_topk(3), "topk", {"to": "topk", "k": 3}),
        (lambda sae: sae.with_threshold(0.25), "jumprelu", {"to": "jumprelu", "threshold": 0.25}),
        (lambda sae: sae.with_mean_l0(rows(), 2), "batch-topk", {"to": "batch-topk", "mean_l0": 2.0}),
        (lambda sae: sae.with_threshold(torch.ones(N)), "jumprelu", {"to": "jumprelu", "threshold": "one per latent"}),
    ],
)
def test_a_swapped_one_is_saved_and_says_what_it_was(kind, change, recipe, record, tmp_path):
    sae, u = make(kind), rows()
    swapped = change(sae)
    swapped.save(tmp_path)
    back = Autoencoder.load(tmp_path)
    assert torch.equal(latents(back, u), latents(swapped, u)) and back.config == swapped.config
    assert back.config.recipe == recipe and record.items() <= back.provenance["swap"].items()
    assert back.provenance["swapped_from"] == {"autoencoder": asdict(sae.config), "provenance": sae.provenance}
    assert back.normaliser == sae.normaliser
    twice = back.with_topk(1).provenance["swapped_from"]
    assert twice["provenance"]["swapped_from"]["provenance"]["key"] == "x"
    assert sae.provenance == {"key": "x", "identity": "0" * 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sae: sae.with_topk(0), "between 1 and n = 40"),
        (lambda sae: sae.with_topk(N + 1), "between 1 and n = 40"),
        (lambda sae: sae.with_threshold(float("nan")), "NaN or infinite"),
        (lambda sae: sae.with_threshold(float("inf")), "NaN or infinite"),
        (lambda sae: sae.with_threshold(torch.full((N,), float("nan"))), "NaN or infinite"),
        (lambda sae: sae.with_threshold(torch.ones(3)), r"one per latent \[40\]"),
        (lambda sae: sae.with_mean_l0(rows(), 0), "between 1 / rows and the latents"),
        (lambda sae: sae.with_mean_l0(rows(), -1), "between 1 / rows and the latents"),
        (lambda sae: sae.with_mean_l0(rows(), float("nan")), "between 1 / rows and the latents"),
        (lambda sae: sae.with_mean_l0(rows(), N + 1), "between 1 / rows and the latents"),
        (lambda sae: sae.with_mean_l0(rows()[:0], 4), "give rows"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(PipelineError, match=message):
        change(make())


def test_k_is_a_whole_number_of_any_kind():
    assert make().with_topk(torch.tensor(3)).config.k == 3
    with pytest.raises(TypeError):
        make().with_topk(2.5)
