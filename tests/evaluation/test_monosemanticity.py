import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_doubles import autoencoder, normalised_rows

from sae_pipeline.autoencoders import Codes
from sae_pipeline.evaluation import ClassPurity, EvaluationError, Monosemanticity, class_purity, monosemanticity_scores
from sae_pipeline.measures.directions import unit_rows

N, E, ITEMS = 24, 6, 70


def sparse_latents(seed=0, share=0.2):
    """Dense latents [ITEMS, N]: 0 fires everywhere, 1 never, 2 on one item, 3 everywhere with one value, 4 on two."""
    rng = np.random.default_rng(seed)
    z = np.where(rng.random((ITEMS, N)) < share, rng.random((ITEMS, N)) + 0.1, 0.0)
    z[:, 0] = rng.random(ITEMS) + 0.5
    z[:, 1:5] = 0.0
    z[7, 2], z[:, 3], z[3, 4], z[9, 4] = 0.8, 0.7, 0.2, 0.9
    return torch.from_numpy(z)


def fixed(z):
    values, indices = z.sort(dim=1, descending=True)
    return Codes(indices, values)


def embeddings(seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((ITEMS, E)) + 0.4)


def pair_loop(z, e):
    """The score as its definition says it: every latent, every pair of items."""
    found = []
    for a in z.numpy().T:
        spread = a.max() - a.min()
        a = (a - a.min()) / spread if spread else np.zeros_like(a)
        num = den = 0.0
        for i in range(len(a)):
            for j in range(i):
                cosine = float(e[i] @ e[j] / (e[i].norm() * e[j].norm()))
                num, den = num + a[i] * a[j] * cosine, den + a[i] * a[j]
        found.append(num / den if den else np.nan)
    return np.array(found)


@pytest.mark.parametrize("layout", [Codes.ragged, fixed])
def test_score_is_that_of_the_loop_over_pairs(layout):
    z, e = sparse_latents(), embeddings()
    expected = pair_loop(z, e)
    assert np.isnan(expected[1:4]).all() and np.isfinite(expected[[0, *range(4, N)]]).all()
    assert monosemanticity_scores(layout(z), e, N) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_alike_and_opposite_items_are_the_limits_and_scale_does_not_matter():
    z, e = sparse_latents(), embeddings()
    assert np.nanmin(monosemanticity_scores(Codes.ragged(z), torch.ones(ITEMS, E), N)) == pytest.approx(1.0)
    opposite = torch.zeros(ITEMS, E).index_fill(1, torch.tensor([0]), 1.0)
    opposite[3] = -opposite[3]
    assert monosemanticity_scores(Codes.ragged(z), opposite, N)[4] == pytest.approx(-1.0)
    once = monosemanticity_scores(Codes.ragged(z), e, N)
    lengths = torch.rand(ITEMS, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    again = monosemanticity_scores(Codes.ragged(1000 * z), (lengths * e).numpy(), N)
    assert again == pytest.approx(once, rel=1e-6, nan_ok=True)


def test_order_and_batches_do_not_matter(evaluation_set):
    made = autoencoder(n=48, k=4)
    u = normalised_rows(made, evaluation_set)[0]
    codes, e = made.encode(u), embeddings()[torch.arange(len(u)) % ITEMS]
    whole, batched = monosemanticity_scores(codes, e, 48), Monosemanticity(48, E)
    order = torch.randperm(len(u), generator=torch.Generator().manual_seed(0))
    for part in order.split(17):
        batched.update(Codes(codes.indices[part], codes.values[part]), e[part])
    assert np.isfinite(whole).any()
    assert batched.scores() == pytest.approx(whole, rel=1e-9, nan_ok=True)
    assert (batched.active_n == (codes.dense(48) > 0).sum(0).numpy()).all() and batched.items == len(u)


def test_chance_is_the_mean_cosine_of_two_items():
    e, measure = embeddings(), Monosemanticity(N, E)
    assert np.isnan(measure.chance()) and np.isnan(measure.scores()).all()
    measure.update(Codes.ragged(sparse_latents()), e)
    cosine = (unit_rows(e) @ unit_rows(e).T).numpy()
    assert measure.chance() == pytest.approx(cosine[np.triu_indices(ITEMS, 1)].mean())


def test_purity_is_that_of_dense_counting_and_ignores_batches():
    z, labels = sparse_latents(), np.random.default_rng(2).integers(0, 5, ITEMS)
    found, batched = class_purity(Codes.ragged(z), labels, N), ClassPurity(N, int(labels.max()) + 1)
    for a in range(0, ITEMS, 9):
        batched.update(fixed(z[a : a + 9]), labels[a : a + 9])
    for j, z_m in enumerate(z.numpy().T):
        counts = [int((z_m[labels == label] > 0).sum()) for label in range(5)]
        if not sum(counts):
            assert found.label_n[j] == -1 and np.isnan(found.share_n[j]) and np.isnan(found.weighted_share_n[j])
            continue
        best = counts.index(max(counts))
        assert found.label_n[j] == best and found.share_n[j] == pytest.approx(max(counts) / sum(counts))
        assert found.weighted_share_n[j] == pytest.approx(z_m[labels == best].sum() / z_m.sum())
    assert found.chance == np.bincount(labels).max() / ITEMS
    again = batched.purity()
    assert (again.label_n == found.label_n).all() and again.chance == found.chance
    assert again.weighted_share_n == pytest.approx(found.weighted_share_n, rel=1e-12, nan_ok=True)


def test_bad_input_says_what_is_wrong():
    codes, e = Codes.ragged(sparse_latents()), embeddings()
    with pytest.raises(EvaluationError, match="70 items, but 69 items"):
        monosemanticity_scores(codes, e[:-1], N)
    with pytest.raises(EvaluationError, match="latent 23, but there are 20"):
        monosemanticity_scores(codes, e, 20)
    with pytest.raises(EvaluationError, match="has no direction"):
        monosemanticity_scores(codes, e * (torch.arange(ITEMS) > 0)[:, None], N)
    with pytest.raises(EvaluationError, match=r"must be \[items, 6\]"):
        Monosemanticity(N, E).update(codes, e[:, :3])
    with pytest.raises(EvaluationError, match=r"labels from 0 to 4 are not 0 … 1"):
        ClassPurity(N, 2).update(codes, np.arange(ITEMS) % 5)
    with pytest.raises(EvaluationError, match="there are none"):
        class_purity(Codes.ragged(torch.zeros(0, N)), [], N)


def test_the_example_of_the_docs_runs():
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    (block,) = (part for part in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "Monosemanticity(" in part)
    names = {}
    exec(block, names)
    assert names["score"] == pytest.approx([1.0, 0.45 / 1.15, np.nan], nan_ok=True)
    assert names["purity"].label_n.tolist() == [0, 1, 1] and names["floor"] == pytest.approx(1 / 3)
