"""Inspecting a prompt, against the activations, the codes and the model's own unembedding."""

import pytest
import torch

from sae_pipeline.autoencoders import inspect_prompt, render_inspection
from sae_pipeline.store import PipelineError
from sae_pipeline.study import Site
from tests.autoencoders.intervention_doubles import ENCODERS, K, N, make
from tests.subjects.tiny_subjects import POSITIONS, VOCAB, D

SITE = Site("tiny", 1, "resid_post")
PROMPT = "def add(first):\n    return first"


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("bos", [True, False])
def test_every_token_shows_its_largest_latents(encoder, bos, tiny):
    subject, tokenizer = tiny("gpt2")
    sae, ids = make(D, encoder), tokenizer.encode_batch([PROMPT])[0]
    found = inspect_prompt(sae, subject, tokenizer, str(SITE), PROMPT, bos=bos, top=3)
    first = [tokenizer.bos_id] if bos else []
    x = subject.run(torch.tensor([first + ids]), [SITE])[SITE][0, len(first) :]
    z = sae.encode(sae.normaliser.normalise(x)[0]).dense(N)
    assert "".join(token.token for token in found.tokens) == PROMPT
    for token, z_n in zip(found.tokens, z, strict=True):
        expected = sorted(((v, i) for i, v in enumerate(z_n.tolist()) if v > 0), reverse=True)[:3]
        assert [(v, i) for i, v in token.latents] == expected
    assert list(found.effects) == sorted({i for token in found.tokens for i, _ in token.latents})


def test_no_more_latents_are_listed_than_are_active(tiny):
    subject, tokenizer = tiny("gpt2")
    found = inspect_prompt(make(D), subject, tokenizer, SITE, PROMPT, top=N + 5)
    assert {len(token.latents) for token in found.tokens} <= set(range(K + 1))
    sae = make(D)
    sae.parameters.b_enc -= 1000.0
    found = inspect_prompt(sae, subject, tokenizer, SITE, PROMPT)
    assert not any(token.latents for token in found.tokens) and not found.effects
    assert all(line.endswith("  none") for line in render_inspection(found).splitlines()[1:])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_effects_are_the_extremes_of_the_unembedded_direction(family, tiny):
    subject, tokenizer = tiny(family)
    sae = make(D)
    found = inspect_prompt(sae, subject, tokenizer, SITE, PROMPT)
    model, known = subject._model, tokenizer.vocab_size
    norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    assert known < VOCAB, "rows of the embedding that no token has must not be listed"
    for latent, effect in found.effects.items():
        d = sae.W_dec[latent]
        d = d - d.mean() if family == "gpt2" else d
        logits = (model.lm_head.weight @ (norm.weight * d))[:known].tolist()
        falling = sorted(range(known), key=logits.__getitem__, reverse=True)
        for listed, tokens in ((effect.raised, falling[:5]), (effect.lowered, falling[:-6:-1])):
            assert [text for text, _ in listed] == [tokenizer.decode([token]) for token in tokens]
            assert [value for _, value in listed] == pytest.approx([logits[token] for token in tokens], rel=1e-4)


@pytest.mark.parametrize("where", ["attn_z", "mlp_mid", "attn_out", "mlp_out", "resid_mid"])
def test_only_directions_of_the_residual_stream_have_direct_effects(where, tiny):
    subject, tokenizer = tiny("gpt2")
    site = Site("tiny", 0, where)
    found = inspect_prompt(make(subject.width(site)), subject, tokenizer, site, PROMPT)
    assert bool(found.effects) == (where not in ("attn_z", "mlp_mid"))
    assert ("raises" in render_inspection(found)) == bool(found.effects)


def test_the_text_says_what_was_found(tiny):
    subject, tokenizer = tiny("gpt2")
    found = inspect_prompt(make(D), subject, tokenizer, SITE, PROMPT, top=2)
    densities = {latent: latent / 1000 for latent in range(N)}
    text = render_inspection(found, densities)
    lines = text.splitlines()
    (latent, value), _ = found.tokens[0].latents
    assert repr(found.tokens[0].token) in lines[1] and f"{latent}: {value:.3g}" in lines[1]
    assert f"{latent}  density {latent / 1000:.2%}" in lines
    raised, value = found.effects[latent].raised[0]
    after = lines[lines.index(f"{latent}  density {latent / 1000:.2%}") + 1]
    assert after.startswith(f"  raises  {raised!r} {value:+.3g}")
    assert "density" not in render_inspection(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "x" * 400}, rf"and a first one, the model {POSITIONS} positions; shorten"),
        ({"top": 0}, "at least one"),
        ({"site": Site("tiny", 1, "mlp_mid")}, "the autoencoder reads 32"),
        ({"site": Site("tiny", 7, "resid_post")}, "layers 0 to 2"),
    ],
)
def test_what_cannot_be_inspected_is_refused(changes, message, tiny):
    subject, tokenizer = tiny("gpt2")
    given = {"site": SITE, "prompt": PROMPT} | changes
    with pytest.raises(PipelineError, match=message):
        inspect_prompt(make(D), subject, tokenizer, **given)


def test_the_longest_prompt_that_fits_is_inspected(tiny):
    subject, tokenizer = tiny("gpt2")
    prompt = "€" * (POSITIONS // 3)  # three bytes, three tokens each
    length = len(tokenizer.encode_batch([prompt])[0])
    assert length == POSITIONS
    assert len(inspect_prompt(make(D), subject, tokenizer, SITE, prompt, bos=False).tokens) == length
    with pytest.raises(PipelineError, match="has 48 tokens and a first one"):
        inspect_prompt(make(D), subject, tokenizer, SITE, prompt)
