import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.dataset.planted import planted_rows
from sae_pipeline.evaluation import EvaluationError, ground_truth
from sae_pipeline.evaluation import compare_with_planted as measure
from sae_pipeline.kernels import Parameters
from sae_pipeline.measures.recovery import mean_correlation

D, ACTIVE = 16, 3


def made_of(W, *, k=ACTIVE, recipe="topk", normaliser="none", bias=0.0):
    n, d = W.shape
    parameters = Parameters(W.clone(), torch.zeros(n) - bias, W.clone(), torch.zeros(d))
    return Autoencoder(AutoencoderConfig(recipe, n, d, k), parameters, Normaliser(normaliser, d))


@pytest.fixture(scope="module")
def orthogonal():
    """Rows over as many orthogonal directions as there are dimensions, without noise."""
    drawn = planted_rows(500, D, features=D, active=ACTIVE, noise=0.0)
    basis_fd = torch.linalg.qr(drawn.dictionary_fd.T)[0].T.contiguous()
    return replace(drawn, dictionary_fd=basis_fd, rows_md=drawn.codes_mf @ basis_fd)


def test_the_dictionary_itself_in_another_order_is_perfect(orthogonal):
    order = torch.randperm(D, generator=torch.Generator().manual_seed(0))
    found = measure(made_of(orthogonal.dictionary_fd[order]), orthogonal)
    assert found.mcc == pytest.approx(1.0) and found.latent_match == pytest.approx(1.0, abs=1e-6)
    assert (order.numpy()[found.latent_f] == np.arange(D)).all()
    assert found.f1 == 1.0 and (found.precision_f == 1).all() and (found.recall_f == 1).all()
    assert found.mcc == pytest.approx(mean_correlation(orthogonal.dictionary_fd, orthogonal.dictionary_fd[order]))


def test_a_negated_direction_is_found_and_never_fires_where_it_should(orthogonal):
    W = orthogonal.dictionary_fd.clone()
    W[2] = -W[2]
    found = measure(made_of(W, recipe="relu", k=None, bias=0.1), orthogonal)
    assert found.mcc == pytest.approx(1.0) and found.recall_f[2] == 0.0 and found.f1_f[2] == 0.0
    assert found.f1 == pytest.approx(15 / 16)


def test_latents_too_few_leave_features_out_and_too_many_are_not_true(orthogonal):
    few = measure(made_of(orthogonal.dictionary_fd[:12]), orthogonal)
    assert (few.latent_f == -1).sum() == 4 and few.mcc == pytest.approx(12 / 16)
    assert np.isnan(few.precision_f[12:]).all() and (few.f1_f[12:] == 0).all()
    extra = torch.nn.functional.normalize(torch.randn(16, D, generator=torch.Generator().manual_seed(3)), dim=1)
    many = measure(made_of(torch.cat([orthogonal.dictionary_fd, extra])), orthogonal)
    assert many.mcc == pytest.approx(1.0) and many.latent_match < 0.9


def test_random_directions_reach_chance(orthogonal):
    wide = planted_rows(200, 64, features=96, active=ACTIVE)
    W = torch.nn.functional.normalize(torch.randn(96, 64, generator=torch.Generator().manual_seed(5)), dim=1)
    found = measure(made_of(W), wide)
    assert found.mcc == pytest.approx(found.chance, rel=0.03) and found.mcc < 0.35


@pytest.mark.parametrize(("recipe", "k"), [("topk", 5), ("relu", None)])
@pytest.mark.parametrize("rows_at_once", [7, 8192])
def test_support_is_that_of_dense_counting(monkeypatch, recipe, k, rows_at_once):
    monkeypatch.setattr(ground_truth, "_ROWS_AT_ONCE", rows_at_once)
    world = planted_rows(300, D, features=20, active=ACTIVE)
    W = torch.nn.functional.normalize(torch.randn(31, D, generator=torch.Generator().manual_seed(5)), dim=1)
    made = made_of(W, recipe=recipe, k=k, bias=0.0 if k else 0.3)
    found = measure(made, world)
    z_mn = made.encode(world.rows_md).dense(31).numpy() > 0
    there_mf = world.codes_mf.numpy() > 0
    for f, latent in enumerate(found.latent_f):
        both, fired, there = (z_mn[:, latent] & there_mf[:, f]).sum(), z_mn[:, latent].sum(), there_mf[:, f].sum()
        assert found.recall_f[f] == pytest.approx(both / there)
        assert found.precision_f[f] == pytest.approx(both / fired, nan_ok=True)
        assert found.f1_f[f] == pytest.approx(2 * both / (fired + there))
    cosine = (torch.nn.functional.normalize(world.dictionary_fd, dim=1) @ W.T).abs().numpy()
    assert found.latent_cosine_n == pytest.approx(cosine.max(0), abs=1e-6)


def test_a_normaliser_that_centres_tokens_centres_directions():
    world = planted_rows(300, D, features=D, active=ACTIVE)
    centred = world.dictionary_fd - world.dictionary_fd.mean(1, keepdim=True)
    W = torch.nn.functional.normalize(centred, dim=1)
    assert measure(made_of(W, normaliser="paper"), world).mcc == pytest.approx(1.0)
    assert measure(made_of(W, normaliser="none"), world).mcc < 0.999


def test_rows_of_another_width_are_refused(orthogonal):
    with pytest.raises(EvaluationError, match="reads rows of 8 values"):
        measure(made_of(torch.eye(8)), orthogonal)
    with pytest.raises(EvaluationError, match="reads rows of 16 values"):
        measure(made_of(torch.eye(D)), replace(orthogonal, rows_md=orthogonal.rows_md[:0]))


def test_the_example_of_the_docs_runs():
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    (block,) = (
        part for part in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "compare_with_planted(" in part
    )
    names = {}
    exec(block, names)
    assert names["found"].mcc == pytest.approx(1.0) and names["found"].f1 > 0.9
    assert names["found"].chance < 0.5
