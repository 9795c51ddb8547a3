"""Autoencoders of a null dataset are judged on held-out draws, in the places of the real rows."""

import numpy as np
import pytest
import torch
from evaluation_doubles import D, autoencoder, make_codes, make_inputs, value_of

from sae_pipeline.dataset import DrawnSet, Gaussian
from sae_pipeline.evaluation import METRICS, challenge
from sae_pipeline.store import Draft, PipelineError
from sae_pipeline.study import NULL


@pytest.fixture(scope="module")
def gaussian():
    rng = np.random.default_rng(4)
    root = rng.standard_normal((D, D))
    return Gaussian(rng.standard_normal(D), (root + root.T) / 8, seed=3)


@pytest.fixture(scope="module")
def drawn(evaluation_set, gaussian):
    return DrawnSet(evaluation_set._source, gaussian)


def test_draws_stand_where_the_rows_stood(evaluation_set, drawn, gaussian):
    n = evaluation_set.n_contexts
    real, drawn_rows = evaluation_set.rows(0, n), drawn.rows(0, n)
    assert drawn_rows[0].shape == real[0].shape and drawn_rows[0].dtype == torch.float32
    assert torch.equal(drawn_rows[0], gaussian.rows("held_out", 0, drawn.n_rows))
    for found, expected in zip(drawn_rows[1:], real[1:], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not torch.isclose(drawn_rows[0], real[0]).all(dim=1).any()


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_draw_depends_on_its_row_alone(drawn, step):
    whole = drawn.rows(0, drawn.n_contexts)
    starts = range(0, drawn.n_contexts, step)
    parts = [drawn.rows(a, min(a + step, drawn.n_contexts)) for a in starts]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    for i in (1, 2):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])


def test_figures_are_those_of_the_draws(drawn, tmp_path):
    made = autoencoder(normaliser="none")
    inputs = make_inputs(made, drawn, tmp_path / "codes")
    result = METRICS["reconstruction"].run(inputs)
    u = drawn.rows(0, drawn.n_contexts)[0]
    u_hat = made.decode(made.encode(u)).double()
    nmse = (u_hat - u).square().sum() / (u.double() - u.double().mean(0)).square().sum()
    row = value_of(result, "nmse")
    assert row["value"] == pytest.approx(float(nmse), rel=1e-6)
    assert row["n_units"] == len(np.unique(drawn.document))
    assert METRICS["density"].run(inputs).facts["tokens"] == drawn.n_rows


def test_nothing_can_be_spliced(drawn, subject, tmp_path):
    with pytest.raises(PipelineError, match=r"take the metric .* out of evaluation\.metrics"):
        METRICS["downstream"].run(make_inputs(autoencoder(normaliser="none"), drawn, tmp_path / "a", subject=subject))


def test_codes_of_draws_are_codes_of_their_rows(drawn, tmp_path):
    made = autoencoder(normaliser="none")
    codes = make_codes(made, drawn, tmp_path / "codes").codes(0, drawn.n_rows)
    assert torch.equal(codes.indices.sort(1).values, made.encode(drawn.rows(0, drawn.n_contexts)[0]).indices.sort(1)[0])


@pytest.mark.parametrize(
    ("challenger", "incumbent", "promoted"),
    [
        ("gaussian_cov dataset", None, False),
        ("untrained subject", None, False),
        (None, "gaussian_cov dataset", True),
        ("untrained subject", "gaussian_cov dataset", True),
    ],
)
def test_a_null_never_takes_the_place_of_a_real_one(evaluation_set, tmp_path, challenger, incumbent, promoted):
    """The better one by far is the null: it must not matter."""
    good, worse = autoencoder(n=96, k=8), autoencoder(n=96, k=8)
    worse.W_dec.neg_()
    pair = [(challenger, worse if promoted else good), (incumbent, good if promoted else worse)]
    artefacts = []
    for i, (null, made) in enumerate(pair):
        lineage = {"config": {NULL: null} if null else {}}
        path, identity = tmp_path / str(i), str(i) * 64
        with Draft.open(path, stage="autoencoders", key="tiny", identity=identity, lineage=lineage) as draft:
            for name, parts in made.to_files().items():
                draft.write_bytes(name, *parts)
            artefacts.append(draft.publish({}))
    verdict = challenge(*artefacts, evaluation_set, resamples=100, seed=0)
    assert verdict["promoted"] is promoted
    assert verdict["reason"] == f"null control: {challenger or 'none'}, so far {incumbent or 'none'}"
