"""Another normaliser, the same function of raw rows."""

import pytest
import torch

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.autoencoders.recipes import RECIPES
from sae_pipeline.dataset import Normaliser
from sae_pipeline.store import PipelineError
from tests.autoencoders.recipe_doubles import D, K, N, batch, parameters

PAIRS = [
    (Normaliser("rms", D, 0.7), Normaliser("rms", D, 1.9)),
    (Normaliser("none", D), Normaliser("mean_norm", D, 0.3)),
    (Normaliser("paper", D), Normaliser("layer_norm", D, D**0.5)),
]


def raw(sae, x):
    u, scale = sae.normaliser.normalise(x)
    codes = sae.encode(u)
    return sae.normaliser.denormalise(sae.decode(codes), scale), codes.dense(N)


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda normaliser: normaliser.name)
@pytest.mark.parametrize("name", ["topk", "relu", "gated"])
def test_reconstructions_of_raw_rows_stay(name, before, after):
    k = K if name == "topk" else None
    sae = Autoencoder(AutoencoderConfig(name, N, D, k), RECIPES[name].fold(parameters(name)), before)
    folded = sae.with_normaliser(after)
    x = 3 + 2 * batch(b=100)
    (expected, z), (found, scaled) = raw(sae, x), raw(folded, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled, z * after.factor / before.factor, rtol=1e-9, atol=1e-9)
    assert (z > 0).any() and folded.normaliser == after and torch.equal(folded.W_dec, sae.W_dec)
    assert folded.with_normaliser(before).normaliser == before


@pytest.mark.parametrize("other", [Normaliser("paper", D), Normaliser("rms", D + 1, 2.0)])
def test_what_no_weights_can_undo_is_refused(other):
    sae = Autoencoder(AutoencoderConfig("relu", N, D), parameters("relu"), Normaliser("rms", D, 1.0))
    with pytest.raises(PipelineError, match="cannot take the place of rms"):
        sae.with_normaliser(other)
