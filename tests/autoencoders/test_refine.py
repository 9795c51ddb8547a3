"""Refined activations are those of non-negative least squares on the same support."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.autoencoders.recipes import RECIPES
from sae_pipeline.dataset import Normaliser
from tests.autoencoders.recipe_doubles import D, K, N, batch, parameters


def made(name):
    k = K if name == "topk" else None
    return Autoencoder(AutoencoderConfig(name, N, D, k), RECIPES[name].fold(parameters(name)), Normaliser("none", D))


@pytest.mark.parametrize("name", ["topk", "gated"])
def test_equals_non_negative_least_squares_row_by_row(name):
    sae, u = made(name), batch(b=60)
    codes = sae.encode(u)
    refined = sae.refine(u, codes)
    z, found = codes.dense(N), refined.dense(N)
    assert not ((found > 0) & (z == 0)).any() and (found >= 0).all()
    for row in range(len(u)):
        on = torch.nonzero(z[row])[:, 0]
        expected, residual = nnls(sae.W_dec[on].T.numpy(), (u[row] - sae.b_pre).numpy())
        target = u[row] - sae.b_pre
        error = float((target - found[row] @ sae.W_dec).square().sum())
        assert error == pytest.approx(residual**2, abs=1e-4 * float(target.square().sum()))
        if len(on) <= D // 2:  # else the activations need not be unique
            np.testing.assert_allclose(found[row, on].numpy(), expected, atol=1e-4)
    assert float((sae.decode(refined) - u).square().sum()) < float((sae.decode(codes) - u).square().sum())


def test_it_gives_back_what_a_penalty_took():
    """One latent shrunk to a half comes back whole; a code that is best already stays."""
    sae = made("relu")
    u = 2.0 * sae.W_dec[[3, 7]] + sae.b_pre
    codes = type(sae.encode(u))(torch.tensor([3, 7]), torch.tensor([1.0, 2.0]).double(), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(sae.refine(u, codes).values, torch.tensor([2.0, 2.0]).double(), atol=1e-6, rtol=0)


def test_empty_codes_stay_empty():
    sae = made("relu")
    empty = type(sae.encode(batch()))(
        torch.empty(0, dtype=torch.int64), torch.empty(0).double(), torch.zeros(4, dtype=torch.int64)
    )
    assert len(sae.refine(batch(b=3), empty).values) == 0
    none = sae.encode(batch(b=3)[:0])
    assert len(sae.refine(batch(b=3)[:0], none)) == 0
