"""Splicing, ablating and steering against `resume` with activations that the tests work out themselves."""

import pytest
import torch

from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site
from tests.autoencoders.intervention_doubles import ENCODERS, N, make
from tests.subjects.tiny_subjects import LAYERS, VOCAB, D

FAMILIES = ("gpt2", "llama")
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")
IDS = torch.randint(0, VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))


def at(layer, where):
    return Site("tiny", layer, where)


def rows_at(subject, site):
    """The raw activation as rows, and its own normalised rows, means and norms worked out by hand."""
    x = subject.run(IDS, [site])[site].flatten(0, 1)
    mean = x.mean(1, keepdim=True)
    norm = (x - mean).norm(dim=1, keepdim=True)
    return x, (x - mean) / norm, mean, norm


def resumed(subject, site, x_rd):
    return subject.resume(site, x_rd.view(*IDS.shape, -1), IDS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", [*RESIDUAL, "attn_z", "attn_out", "mlp_mid", "mlp_out"])
def test_splicing_is_resuming_with_the_reconstruction(family, where, tiny):
    subject, _ = tiny(family)
    for layer in range(LAYERS):
        site = at(layer, where)
        sae = make(subject.width(site))
        x, *_ = rows_at(subject, site)
        u, scale = sae.normaliser.normalise(x)
        x_hat = sae.normaliser.denormalise(sae.decode(sae.encode(u)), scale)
        expected = resumed(subject, site, x_hat)
        with sae.splice(subject, str(site)):
            assert torch.equal(subject.logits(IDS), expected), site
        assert not torch.equal(subject.logits(IDS), expected)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("normaliser", ["paper", "rms", "none"])
def test_an_edit_that_changes_nothing(encoder, normaliser, tiny):
    """With keep_error it is exactly nothing; else it is the plain splice, decoded densely."""
    subject, _ = tiny("gpt2")
    site, sae, clean = at(1, "resid_post"), make(D, encoder, normaliser), subject.logits(IDS)
    for edit in (None, lambda z: z, sae.ablate([]), sae.steer(3, 0.0)):
        with sae.splice(subject, site, edit=edit, keep_error=True):
            assert torch.equal(subject.logits(IDS), clean)
    with sae.splice(subject, site):
        plain = subject.logits(IDS)
    with sae.splice(subject, site, edit=lambda z: z):
        torch.testing.assert_close(subject.logits(IDS), plain, rtol=1e-5, atol=1e-5)
    assert not torch.equal(plain, clean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_without_any_latent_b_pre_is_left(family, encoder, tiny):
    subject, _ = tiny(family)
    site, sae = at(1, "resid_mid"), make(D, encoder)
    _, _, mean, norm = rows_at(subject, site)
    with sae.splice(subject, site, edit=sae.ablate(range(N))):
        got = subject.logits(IDS)
    torch.testing.assert_close(got, resumed(subject, site, norm * sae.b_pre + mean), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_ablating_takes_the_latents_share_away(encoder, tiny):
    """x − ‖x − mean‖ · z_i d_i for each, the error kept; other tokens and latents are untouched."""
    subject, _ = tiny("llama")
    site, sae = at(0, "resid_post"), make(D, encoder)
    x, u, _, norm = rows_at(subject, site)
    z = sae.encode(u).dense(N)
    chosen = z.sum(0).topk(2).indices.tolist()
    expected = x - norm * (z[:, chosen] @ sae.W_dec[chosen])
    with sae.splice(subject, site, edit=sae.ablate(chosen), keep_error=True):
        logits = subject.logits(IDS)
        with_edit = subject.run(IDS, [site])[site].flatten(0, 1)
    torch.testing.assert_close(with_edit, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, resumed(subject, site, expected), rtol=1e-4, atol=1e-5)
    silent = (z[:, chosen] == 0).all(1)
    assert torch.equal(with_edit[silent], x[silent])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normaliser", ["paper", "rms"])
def test_steering_moves_every_token_along_the_direction(family, normaliser, tiny):
    subject, _ = tiny(family)
    site, sae, strength = at(1, "resid_post"), make(D, normaliser=normaliser), -2.5
    x, _, _, norm = rows_at(subject, site)
    step = strength * sae.W_dec[7] * (norm if normaliser == "paper" else 1 / 1.3)
    with sae.splice(subject, site, edit=sae.steer(7, strength), keep_error=True):
        torch.testing.assert_close(subject.run(IDS, [site])[site].flatten(0, 1), x + step, rtol=1e-5, atol=1e-5)
    with sae.splice(subject, site):
        plain = subject.run(IDS, [site])[site].flatten(0, 1)
    with sae.splice(subject, site, edit=sae.steer(7, strength)):
        torch.testing.assert_close(subject.run(IDS, [site])[site].flatten(0, 1), plain + step, rtol=1e-5, atol=1e-5)


def test_contexts_do_not_see_each_other(tiny):
    subject, _ = tiny("gpt2")
    site, sae = at(1, "resid_mid"), make(D)
    with sae.splice(subject, site, edit=sae.steer(1, 4.0)):
        together = subject.logits(IDS)
        alone = torch.cat([subject.logits(context[None]) for context in IDS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_an_edit_may_write_into_its_latents(tiny):
    subject, _ = tiny("gpt2")
    site, sae = at(1, "resid_post"), make(D)

    def write(z_rn):
        z_rn[:] = 0.0
        return z_rn

    for keep_error in (False, True):
        logits = []
        for edit in (write, torch.zeros_like):
            with sae.splice(subject, site, edit=edit, keep_error=keep_error):
                logits.append(subject.logits(IDS))
        assert torch.equal(*logits) and not torch.equal(logits[0], subject.logits(IDS))


def test_a_subject_in_bfloat16_is_read_in_the_autoencoders_own_precision(tiny):
    subject, _ = tiny("llama", dtype="bfloat16")
    site, sae, clean = at(1, "resid_mid"), make(D), subject.logits(IDS)
    u, scale = sae.normaliser.normalise(rows_at(subject, site)[0].float())
    x_hat = sae.normaliser.denormalise(sae.decode(sae.encode(u)), scale)
    expected = resumed(subject, site, x_hat)
    with sae.splice(subject, site):
        assert torch.equal(subject.logits(IDS), expected) and expected.dtype == torch.bfloat16
    with sae.splice(subject, site, edit=lambda z: z, keep_error=True):
        assert torch.equal(subject.logits(IDS), clean)


@pytest.mark.parametrize("where", RESIDUAL)
def test_the_model_is_as_before_after_an_exception(where, tiny):
    subject, _ = tiny("llama")
    site, sae, clean = at(1, where), make(D), subject.logits(IDS)

    def fail(z_rn):
        raise ZeroDivisionError

    for error, edit in ((ZeroDivisionError, fail), (PipelineError, lambda z: z[:, 1:])):
        with pytest.raises(error), sae.splice(subject, site, edit=edit):
            subject.logits(IDS)
        assert torch.equal(subject.logits(IDS), clean)


def test_what_cannot_be_is_refused_before_any_pass(tiny):
    subject, sae = tiny("gpt2")[0], make(D)
    for latents in ([0, N], [-1]):
        with pytest.raises(PipelineError, match="has 0 to 49"):
            sae.ablate(latents)
    with pytest.raises(PipelineError, match="has 0 to 49"):
        sae.steer(N, 1.0)
    with pytest.raises(PipelineError, match="finite number"):
        sae.steer(0, float("nan"))
    for site, error, message in (
        ("tiny.1.mlp_mid", PipelineError, "128 values per token and the autoencoder reads 32"),
        ("tiny.9.resid_post", PipelineError, "layers 0 to 2"),
        ("resid_post", ValueError, "write <alias>"),
    ):
        with pytest.raises(error, match=message), sae.splice(subject, site):
            pass
